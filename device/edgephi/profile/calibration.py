"""
What a calibration measured, and where it is kept.

Owns the data, what makes one valid, and its files. Measures nothing (edgephi.runtime.calibrate does), judges nothing
(edgephi.profile.regressions does).

Each calibration is one file of JSON that is written once and never changed, so processes that calibrate at the same
time lose nothing, and all of them together are a device's history:

    <folder>/<first 16 digits of the device key>/<time>-<first 12 digits of the build key>-<random>.json
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgephi.errors import ConfigError
from edgephi.profile.machine.probe import DeviceFacts
from edgephi.profile.plan import KvDtype
from edgephi.profile.speed import StepTimes

FORMAT_VERSION = 1
# What firmware and kernel leave of the memory that is sold moves by megabytes with each update; rounded up it does not.
_MEMORY_STEP_BYTES = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """
    One kind of step that was timed.

    Attributes:
        sequences: How many sequences took part.
        rows: New tokens of each.
        context_tokens: Tokens before them, in each.
        seconds: Median of the samples.
        samples: How many there were.
    """

    sequences: int
    rows: int
    context_tokens: int
    seconds: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """
    How quiet the machine was meanwhile.

    Attributes:
        cpu_share: CPU time that the computing threads had, of what they would have had undisturbed, at most about 1.
        other_cores: Cores that were busy with anything else, on average; None where the kernel does not tell.
        bandwidth_spread: Middle half of the samples of bandwidth, its width as a part of the median.
        noise: Why the result is not to be relied on, for people; empty where nothing disturbed it.
    """

    cpu_share: float
    other_cores: float | None
    bandwidth_spread: float
    noise: tuple[str, ...] = ()

    @property
    def is_noisy(self) -> bool:
        """Whether another run on a quieter machine would tell more."""
        return bool(self.noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """
    Speeds of one build of a model on one device.

    Attributes:
        device_key: Digest of what the device is; see :func:`device_key`.
        build_key: Digest of what ran; see :func:`build_key`.
        model_key: Digest of the model's files: the same for all builds of it.
        measured_at: When, ISO 8601 in UTC with microseconds.
        device: Name of the board or the processor for people.
        model: Name of the model for people.
        quantization: Format of its weights.
        level: Instruction-set level of its library.
        kv_dtype: Element type of keys and values.
        step_weight_bytes: Bytes of weights every step read.
        kv_bytes_per_token: Bytes of keys and values of a token.
        requested_threads: Threads the user asked for, or None where they were chosen.
        tvm_version: Of the runtime.
        edgephi_version: Of this package.
        bandwidth: (threads, bytes per second of reading the weights and doing nothing else), ascending.
        steps: The steps that were timed.
        times: Durations of any step with the threads that were chosen, fitted to them.
        conditions: How quiet the machine was.
        load_s: Seconds to load the compiled model.
        total_s: Seconds in all, loading included.
        was_slower: Whether it was much slower than what it was compared with.
    """

    device_key: str
    build_key: str
    model_key: str
    measured_at: str
    device: str
    model: str
    quantization: str
    level: str
    kv_dtype: KvDtype
    step_weight_bytes: int
    kv_bytes_per_token: int
    requested_threads: int | None
    tvm_version: str
    edgephi_version: str
    bandwidth: tuple[tuple[int, float], ...]
    steps: tuple[MeasuredStep, ...]
    times: StepTimes
    conditions: Conditions
    load_s: float
    total_s: float
    was_slower: bool = False

    def decode_tokens_per_s(self, *, batch: int = 1, context_tokens: int = 0) -> float:
        """Return the tokens a second of each of *batch* streams."""
        return self.times.decode_tokens_per_s(
            batch=batch, context_tokens=context_tokens, kv_bytes_per_token=self.kv_bytes_per_token
        )

    def step(self, *, sequences: int, rows: int, context_tokens: int = 0) -> MeasuredStep | None:
        """Return a step that was timed, or None."""
        wanted = sequences, rows, context_tokens
        return next((s for s in self.steps if (s.sequences, s.rows, s.context_tokens) == wanted), None)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    calibration: Calibration


def device_key(facts: DeviceFacts) -> str:
    """
    Return 64 hex digits of what a device is: cores, frequencies, governor, board, memory, CPU quota and affinity.

    What changes from minute to minute (free memory, load, temperature) is left out.
    """
    total = facts.memory.total_bytes
    cores = [[c.cpus, c.core, c.max_mhz, c.capacity, c.governor] for c in facts.cpu.clusters]
    memory = None if total is None else -(-total // _MEMORY_STEP_BYTES)
    quota = facts.limits.cpu_cores
    limits = [None if quota is None else round(quota, 2), facts.limits.allowed_cpus]
    return _digest([facts.board, facts.cpu.model, facts.cpu.arch, sorted(facts.cpu.features), cores, memory, limits])


def build_key(*, fingerprint: str, kv_dtype: KvDtype, threads: int, tvm_version: str, edgephi_version: str) -> str:
    """
    Return 64 hex digits of what ran on a device.

    Args:
        fingerprint: Of the bundle, so of the model, the level and the compiler.
        kv_dtype: Element type of keys and values.
        threads: Threads that compute.
        tvm_version: Of the runtime.
        edgephi_version: Of this package.
    """
    return _digest([fingerprint, kv_dtype.value, threads, tvm_version, edgephi_version])


def find_calibration(folder: Path, device_key: str, build_key: str) -> Calibration | None:
    """
    Return the newest calibration of this device and this build, a quiet one if there is any; None where there is none.

    Files that are damaged or of another version are left out, with a warning in the log.
    """
    found = [known for known in read_calibrations(folder, device_key) if known.build_key == build_key]
    return next((known for known in found if not known.conditions.is_noisy), next(iter(found), None))


def find_baseline(folder: Path, calibration: Calibration) -> Calibration | None:
    """
    Return what a new calibration is to be compared with: the newest earlier one of the same device and model.

    Any build counts, for a slower build is what is looked for; the element type of keys and values and what was asked
    for as threads must be the same. One that was disturbed, or was itself reported as slower, is no measure.
    """

    def is_measure(known: Calibration) -> bool:
        return (
            known.model_key == calibration.model_key
            and known.kv_dtype is calibration.kv_dtype
            and known.requested_threads == calibration.requested_threads
            and known.measured_at < calibration.measured_at
            and not known.conditions.is_noisy
            and not known.was_slower
        )

    return next(filter(is_measure, read_calibrations(folder, calibration.device_key)), None)


def read_calibrations(folder: Path, device_key: str) -> tuple[Calibration, ...]:
    """Return all calibrations of a device that can be read, newest first."""
    try:
        paths = sorted(_device_folder(folder, device_key).glob("*.json"))
    except OSError as error:
        _log.warning("calibration.ignored path=%s reason=%r", folder, error.strerror)
        return ()
    found = [known for path in paths if (known := _read(path)) is not None and known.device_key == device_key]
    return tuple(sorted(found, key=lambda known: known.measured_at, reverse=True))


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """
    Write a calibration to a file of its own, which appears whole or not at all.

    Returns:
        The file.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    device_folder = _device_folder(folder, calibration.device_key)
    time = "".join(c for c in calibration.measured_at if c.isalnum())
    path = device_folder / f"{time}-{calibration.build_key[:12]}-{secrets.token_hex(4)}.json"
    partial = path.with_suffix(".partial")
    text = msgspec.json.format(
        msgspec.json.encode(_File(format_version=FORMAT_VERSION, calibration=calibration)), indent=1
    )
    try:
        device_folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"{device_folder} cannot be written ({error.strerror}); free space, permit it, or set XDG_CACHE_HOME"
        ) from error
    return path


def _device_folder(folder: Path, device_key: str) -> Path:
    return folder / device_key[:16]


def _read(path: Path) -> Calibration | None:
    """Return what a file holds, or None with a warning where that is no calibration this version can use."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        reason = str(error.strerror)
    except msgspec.DecodeError as error:
        reason = str(error)
    else:
        if file.format_version == FORMAT_VERSION and _is_sane(file.calibration):
            return file.calibration
        reason = f"format {file.format_version}, or absurd numbers"
    _log.warning("calibration.ignored path=%s reason=%r", path, reason)
    return None


def _is_sane(calibration: Calibration) -> bool:
    """Whether every number can be what was measured: finite, positive, in order."""
    times = calibration.times
    tables = [times.rows, calibration.bandwidth]
    in_order = all(table and table[0][0] == 1 and _ascends([n for n, _ in table]) for table in tables)
    positive = [seconds for table in tables for _, seconds in table]
    positive += [step.seconds for step in calibration.steps]
    if times.bandwidth_bytes_per_s is not None:
        positive.append(times.bandwidth_bytes_per_s)
    not_negative = [times.kv_s_per_byte, times.prefill_s_per_pair]
    return (
        in_order
        and all(math.isfinite(number) and number > 0 for number in positive)
        and all(math.isfinite(number) and number >= 0 for number in not_negative)
        and calibration.step_weight_bytes > 0
        and calibration.kv_bytes_per_token > 0
    )


def _ascends(numbers: list[int]) -> bool:
    return all(low < high for low, high in itertools.pairwise(numbers))


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps([FORMAT_VERSION, *parts], sort_keys=True).encode()).hexdigest()
