"""
What a calibration measured, and where it is kept.

Owns the data and its file. Measures nothing (edgephi.runtime.calibrate does).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.profile.plan import KvDtype
from edgephi.profile.speed import StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """
    Speeds of one build of a model on one device.

    Attributes:
        device_key: Digest of what the device is: cores, frequencies, memory, board, limits of the CPU.
        build_key: Digest of what ran: bundle fingerprint, TVM's and edgephi's version.
        measured_at: When, ISO 8601 in UTC.
        model: Name of the model for people.
        quantization: Format of its weights.
        kv_dtype: Element type of keys and values.
        step_weight_bytes: Bytes of weights every step read.
        kv_bytes_per_token: Bytes of keys and values of a token.
        bandwidth: (threads, bytes per second of a streaming read), ascending.
        times: Durations of its steps with the threads that were chosen.
    """

    device_key: str
    build_key: str
    measured_at: str
    model: str
    quantization: str
    kv_dtype: KvDtype
    step_weight_bytes: int
    kv_bytes_per_token: int
    bandwidth: tuple[tuple[int, float], ...]
    times: StepTimes
