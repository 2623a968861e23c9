"""Calibrations on disk: what makes one valid, what is compared with what, and files that are damaged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.errors import ConfigError
from edgephi.profile.boards.board import Board, Evidence, Figure
from edgephi.profile.calibration import (
    Calibration,
    Conditions,
    MeasuredStep,
    build_key,
    device_key,
    find_baseline,
    find_calibration,
    read_calibrations,
    save_calibration,
)
from edgephi.profile.fit import ascending, fit_step_times
from edgephi.profile.machine.probe import DeviceFacts, probe
from edgephi.profile.plan import KvDtype
from edgephi.profile.regressions import compare_with_board, compare_with_earlier
from edgephi.profile.speed import StepTimes

DEVICE, OTHER_DEVICE = "d" * 64, "e" * 64
BUILD, OTHER_BUILD = "b" * 64, "c" * 64
QUIET = Conditions(cpu_share=0.99, other_cores=0.0, bandwidth_spread=0.02)
NOISY = dataclasses.replace(QUIET, other_cores=1.5, noise=("other programs kept 1.5 cores busy",))
TIMES = StepTimes(
    threads=4,
    rows=((1, 0.2), (2, 0.21), (16, 0.8), (64, 3.0)),
    kv_s_per_byte=2e-10,
    prefill_s_per_pair=1e-6,
    bandwidth_bytes_per_s=12e9,
    window_tokens=2047,
)
CALIBRATION = Calibration(
    device_key=DEVICE,
    build_key=BUILD,
    model_key="a" * 64,
    measured_at="2026-11-24T10:00:00.000000Z",
    device="Raspberry Pi 5",
    model="phi3-mini-4k",
    quantization="q4f16_1",
    level="armv8.2-dotprod",
    kv_dtype=KvDtype.INT8,
    step_weight_bytes=2_100_000_000,
    kv_bytes_per_token=200_704,
    requested_threads=None,
    tvm_version="0.27.0",
    edgephi_version="0.1.0",
    bandwidth=((1, 7e9), (4, 12e9)),
    steps=(MeasuredStep(sequences=1, rows=1, context_tokens=0, seconds=0.2, samples=5),),
    times=TIMES,
    conditions=QUIET,
    load_s=2.0,
    total_s=19.0,
)

Plant = Callable[..., DeviceFacts]


def made(**changes: Any) -> Calibration:
    """Return a calibration with some of its fields changed."""
    return dataclasses.replace(CALIBRATION, **changes)


def slowed(factor: float, **changes: Any) -> Calibration:
    """Return a calibration whose every step takes *factor* times as long, with memory as much slower."""
    times = dataclasses.replace(
        TIMES,
        rows=tuple((rows, factor * seconds) for rows, seconds in TIMES.rows),
        bandwidth_bytes_per_s=12e9 / factor,
    )
    return made(times=times, **changes)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Return a function that probes a board with four cores; keywords change one file each."""

    def probe_board(**changes: str) -> DeviceFacts:
        values = {"board": "Raspberry Pi 5 Model B", "total": "8256140", "governor": "ondemand", "khz": "2400000"}
        values |= {"allowed": "0-3", "available": "7000000", "quota": "max 100000", **changes}
        files = {
            "proc/cpuinfo": "".join(f"processor\t: {n}\nFeatures\t: asimd\n\n" for n in range(4)),
            "proc/meminfo": f"MemTotal: {values['total']} kB\nMemAvailable: {values['available']} kB\n",
            "proc/self/status": f"Cpus_allowed_list:\t{values['allowed']}\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/cpu.max": f"{values['quota']}\n",
            "proc/device-tree/model": values["board"],
            "sys/devices/system/cpu/online": "0-3\n",
        }
        for n in range(4):
            files[f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq"] = f"{values['khz']}\n"
            files[f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor"] = f"{values['governor']}\n"
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return probe(tmp_path, arch="aarch64")

    return probe_board


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    """A stored calibration is found by its device and build, equal in every field."""
    path = save_calibration(tmp_path, CALIBRATION)
    assert path.parent.parent == tmp_path
    assert find_calibration(tmp_path, DEVICE, BUILD) == CALIBRATION


@pytest.mark.parametrize("keys", [(OTHER_DEVICE, BUILD), (DEVICE, OTHER_BUILD), (DEVICE[:16] + "0" * 48, BUILD)])
def test_another_device_or_build_finds_nothing(tmp_path: Path, keys: tuple[str, str]) -> None:
    """A calibration of another device or another build does not hold, also where the folder's name is the same."""
    save_calibration(tmp_path, CALIBRATION)
    assert find_calibration(tmp_path, *keys) is None


def test_the_newest_quiet_one_is_found(tmp_path: Path) -> None:
    """Of several the newest is taken, but a disturbed one only if there is no other."""
    noisy = made(measured_at="2026-11-24T12:00:00.000000Z", conditions=NOISY)
    save_calibration(tmp_path, noisy)
    assert find_calibration(tmp_path, DEVICE, BUILD) == noisy
    newest = made(measured_at="2026-11-24T11:00:00.000000Z")
    for calibration in (newest, CALIBRATION):
        save_calibration(tmp_path, calibration)
    assert find_calibration(tmp_path, DEVICE, BUILD) == newest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"format_version": 1}',
        b'{"format_version": 1, "calibration": null}',
        "truncated",
        "version",
        "negative",
        "infinite",
        "unsorted",
        "without rows",
    ],
    ids=str,
)
def test_damaged_and_foreign_files_are_ignored(
    tmp_path: Path, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no calibration of this version is left out with a warning that names it; others are found."""
    good = save_calibration(tmp_path, CALIBRATION)
    text = good.read_text()
    if isinstance(content, str):
        file = json.loads(text)
        times = file["calibration"]["times"]
        if content == "version":
            file["format_version"] = 99
        elif content == "negative":
            times["rows"][0][1] = -1.0
        elif content == "infinite":
            times["kv_s_per_byte"] = None
        elif content == "unsorted":
            times["rows"].reverse()
        elif content == "without rows":
            times["rows"] = []
        data = (text[: len(text) // 2] if content == "truncated" else json.dumps(file)).encode()
    else:
        data = content
    bad = good.with_name("20261125-bad.json")
    bad.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert read_calibrations(tmp_path, DEVICE) == (CALIBRATION,)
    assert [record.getMessage().split(" ", 1)[0] for record in caplog.records] == ["calibration.ignored"]
    assert bad.name in caplog.text


def test_what_a_killed_process_left_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was never finished has another name, so it is not even a warning."""
    path = save_calibration(tmp_path, CALIBRATION)
    path.with_suffix(".partial").write_text("{")
    assert len(read_calibrations(tmp_path, DEVICE)) == 1
    assert caplog.records == []


def test_a_folder_in_place_of_a_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is left out with a warning."""
    path = save_calibration(tmp_path, CALIBRATION)
    path.with_name("folder.json").mkdir()
    assert read_calibrations(tmp_path, DEVICE) == (CALIBRATION,)
    assert "folder.json" in caplog.text


def _save_many(folder: Path, who: int) -> None:
    for number in range(20):
        save_calibration(folder, made(load_s=float(1000 * who + number)))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes store calibrations of the same device, build and time; all are there afterwards."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save_many, args=(tmp_path, who)) for who in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = {known.load_s for known in read_calibrations(tmp_path, DEVICE)}
    assert found == {float(1000 * who + number) for who in range(4) for number in range(20)}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """Storing below a file fails with the folder's name and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/d+ cannot be written .*XDG_CACHE_HOME"):
        save_calibration(tmp_path / "file", CALIBRATION)


@pytest.mark.parametrize(
    "change",
    [
        {"board": "Raspberry Pi 4 Model B"},
        {"total": "4000000"},
        {"governor": "powersave"},
        {"khz": "1800000"},
        {"allowed": "0-2"},
        {"quota": "150000 100000"},
    ],
    ids=str,
)
def test_a_changed_device_has_another_key(plant: Plant, change: dict[str, str]) -> None:
    """Board, memory, governor, frequency, affinity and CPU quota are part of what a device is."""
    assert device_key(plant()) != device_key(plant(**change))


def test_minutes_do_not_change_the_key(plant: Plant) -> None:
    """Free memory, and the megabytes by which an update changes all memory, do not make another device."""
    assert device_key(plant()) == device_key(plant(available="100000", total="8240000"))


def test_every_part_of_a_build_changes_its_key() -> None:
    """Bundle, element type, threads and versions each make another build."""
    parts: dict[str, Any] = {
        "fingerprint": "f" * 64,
        "kv_dtype": KvDtype.INT8,
        "threads": 4,
        "tvm_version": "0.27.0",
        "edgephi_version": "0.1.0",
    }
    changed: dict[str, Any] = {
        "fingerprint": "0" * 64,
        "kv_dtype": KvDtype.FLOAT16,
        "threads": 3,
        "tvm_version": "0.28.0",
        "edgephi_version": "0.2.0",
    }
    keys = {build_key(**parts), *(build_key(**(parts | {name: changed[name]})) for name in parts)}
    assert len(keys) == 1 + len(parts)


def test_the_baseline_is_the_newest_earlier_one_of_the_model(tmp_path: Path) -> None:
    """Any build of the same model counts; other models, types and threads, noise, slow runs and the future do not."""
    good = made(measured_at="2026-11-20T10:00:00.000000Z", build_key=OTHER_BUILD)
    others = [
        made(measured_at="2026-11-19T10:00:00.000000Z"),
        made(measured_at="2026-11-21T10:00:00.000000Z", model_key="0" * 64),
        made(measured_at="2026-11-21T11:00:00.000000Z", kv_dtype=KvDtype.FLOAT16),
        made(measured_at="2026-11-21T12:00:00.000000Z", requested_threads=1),
        made(measured_at="2026-11-21T13:00:00.000000Z", conditions=NOISY),
        made(measured_at="2026-11-21T14:00:00.000000Z", was_slower=True),
        made(measured_at="2026-11-21T15:00:00.000000Z", device_key=OTHER_DEVICE),
        made(measured_at="2026-11-25T10:00:00.000000Z"),
    ]
    for calibration in (*others, good):
        save_calibration(tmp_path, calibration)
    assert find_baseline(tmp_path, CALIBRATION) == good


def test_a_tenth_of_the_speed_is_reported_with_both_figures() -> None:
    """Decode, prefill and bandwidth that became ten times slower are three warnings with figures, date and builds."""
    slow = slowed(10, build_key=OTHER_BUILD, edgephi_version="0.2.0", measured_at="2026-12-01T00:00:00.000000Z")
    decode, prefill, reading = compare_with_earlier(slow, CALIBRATION)
    assert decode == (
        "decoding with an empty context is 0.5 tok/s, 10.0 times slower than the 5 tok/s measured on 2026-11-24 with "
        f"build {'b' * 8} (armv8.2-dotprod, 4 threads, edgephi 0.1.0, TVM 0.27.0), "
        f"now {'c' * 8} (armv8.2-dotprod, 4 threads, edgephi 0.2.0, TVM 0.27.0)"
    )
    assert "prefill in chunks of 64 is 2.13 tok/s, 10.0 times slower than the 21.3" in prefill
    assert "reading memory is 1.2 GB/s, 10.0 times slower than the 12" in reading


@pytest.mark.parametrize(("factor", "warnings"), [(0.5, 0), (1.0, 0), (1.17, 0), (1.19, 3)])
def test_fifteen_percent_are_the_limit(factor: float, warnings: int) -> None:
    """What is faster or at most 15 % slower is not reported."""
    assert len(compare_with_earlier(slowed(factor), CALIBRATION)) == warnings


def _board(effective_gbps: float) -> Board:
    figure = Figure(1.0, Evidence.ASSUMED, "a test")
    return Board(
        name="pi",
        title="Raspberry Pi 5",
        family="pi",
        isa_level="armv8.2-dotprod",
        clusters=(),
        memory_bytes=figure,
        os_reserve_bytes=figure,
        bandwidth_gbps=figure,
        effective_gbps=dataclasses.replace(figure, value=effective_gbps),
    )


def test_a_device_far_below_its_board_is_reported_with_hints(plant: Plant) -> None:
    """Below 60 % of the catalogue is a warning that names governor, quota and noise."""
    facts = plant(governor="powersave", quota="200000 100000")
    slow = slowed(2, conditions=NOISY)
    reading, decode = compare_with_board(slow, _board(12.0), facts)
    assert "reading memory reaches 6 GB/s, 50 % of the 12 GB/s expected of Raspberry Pi 5 (assumed 12 GB/s)" in reading
    assert "decoding with an empty context reaches 2.5 tok/s, 44 % of the 5.71 tok/s" in decode
    for hint in ("governor powersave", "quota of 2 of 4 cores", "other programs kept", "cooling"):
        assert hint in reading


def test_a_device_as_its_board_is_not_reported(plant: Plant) -> None:
    """Above 60 % nothing is said; nor of a small model, whose weights stay in a cache."""
    assert compare_with_board(CALIBRATION, _board(14.0), plant()) == ()
    assert compare_with_board(slowed(10, step_weight_bytes=1 << 20), _board(12.0), plant()) == ()


def test_the_fit_finds_the_numbers_that_made_the_steps() -> None:
    """Steps computed from durations give these durations back, also beyond the attention window."""
    times = dataclasses.replace(TIMES, rows=((1, 0.2), (4, 0.25), (16, 0.8)))
    steps = []
    for sequences, rows, context in [
        (1, 1, 0),
        (4, 1, 0),
        (1, 16, 0),
        (1, 1, 1024),
        (1, 1, 4095),
        (4, 1, 1023),
        (1, 16, 2048),
    ]:
        seconds = times.rows_s(sequences * rows)
        pairs = sequences * rows * times.seen_tokens(context)
        seconds += pairs * (200_704 * times.kv_s_per_byte if rows == 1 else times.prefill_s_per_pair)
        steps.append(MeasuredStep(sequences=sequences, rows=rows, context_tokens=context, seconds=seconds, samples=1))
    fitted = fit_step_times(
        steps, threads=4, kv_bytes_per_token=200_704, window_tokens=2047, bandwidth_bytes_per_s=12e9
    )
    assert fitted.rows == times.rows
    assert fitted.kv_s_per_byte == pytest.approx(times.kv_s_per_byte)
    assert fitted.prefill_s_per_pair == pytest.approx(times.prefill_s_per_pair)


def test_without_a_chunk_behind_a_context_a_decode_stands_for_it() -> None:
    """Where no chunk was timed behind a context, its rows cost what rows of decodes cost."""
    steps = [
        MeasuredStep(sequences=1, rows=1, context_tokens=context, seconds=0.2 + 1e-5 * context, samples=1)
        for context in (0, 100)
    ]
    fitted = fit_step_times(steps, threads=1, kv_bytes_per_token=1000, window_tokens=None, bandwidth_bytes_per_s=None)
    assert fitted.kv_s_per_byte == pytest.approx(1e-8)
    assert fitted.prefill_s_per_pair == pytest.approx(1e-5)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=12))
def test_rows_are_made_to_ascend(seconds: list[float]) -> None:
    """No point descends, points that ascend already stay, and every point stays within what was measured."""
    points = [(2**index, value) for index, value in enumerate(seconds)]
    found = ascending(points)
    values = [value for _, value in found]
    assert [rows for rows, _ in found] == [rows for rows, _ in points]
    assert all(low <= high * (1 + 1e-9) for low, high in itertools.pairwise(values))
    assert min(seconds) * (1 - 1e-9) <= min(values)
    assert max(values) <= max(seconds) * (1 + 1e-9)
    if seconds == sorted(seconds):
        assert values == seconds
