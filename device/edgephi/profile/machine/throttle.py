"""
How fast the cores may run now, and whether heat or a weak power supply holds them back.

Owns the places where kernels and firmware say so: frequency policies, cooling devices, the flags of Raspberry Pi
firmware and the counters of x86.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.cores import read_mhz
from edgephi.profile.machine.kernelfile import (
    MAX_CPUS,
    list_folder,
    parse_hex,
    parse_int,
    read_int,
    read_name,
    read_text,
)

# Raspberry Pi firmware. Source: Raspberry Pi documentation, "vcgencmd get_throttled".
_UNDER_VOLTAGE, _HELD_BACK, _ALL_FLAGS = 0x1, 0xE, 0xF000F
# Cooling devices that slow cores down, by the start of their lower-case type; others are fans and modems.
_CPU_COOLING = ("cpufreq-", "thermal-cpufreq-", "cpuidle-", "processor", "intel_powerclamp")


@dataclass(frozen=True, slots=True)
class FrequencyPolicy:
    """
    Cores that change frequency together, in MHz; None where not told.

    Attributes:
        cpus: Kernel numbers, ascending.
        mhz: Frequency now.
        limit_mhz: Highest that the power mode or cooling allows now.
        max_mhz: Highest that the hardware can.
    """

    cpus: tuple[int, ...]
    mhz: int | None
    limit_mhz: int | None
    max_mhz: int | None


@dataclass(frozen=True, slots=True)
class ThrottleFacts:
    """
    Whether something holds the cores back; None where nothing tells.

    Attributes:
        is_throttled: Heat or voltage slows cores down now.
        is_under_voltage: The power supply is too weak now.
        was_throttled: Either happened since the machine started.
        num_events: Times x86 cores were slowed down by heat since the machine started; compare two readings.
    """

    is_throttled: bool | None = None
    is_under_voltage: bool | None = None
    was_throttled: bool | None = None
    num_events: int | None = None


def read_frequencies(root: Path) -> tuple[FrequencyPolicy, ...]:
    """Return the frequency policies in the order of their cores; empty where the kernel has none."""
    found: list[FrequencyPolicy] = []
    for folder in list_folder(root / "sys/devices/system/cpu/cpufreq", "policy"):
        words = (read_text(folder / "affected_cpus") or "").split()
        numbers = [parse_int(word) for word in words]
        cpus = sorted({cpu for cpu in numbers if cpu is not None and 0 <= cpu < MAX_CPUS})
        if cpus and len(cpus) == len(words):
            names = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
            found.append(FrequencyPolicy(tuple(cpus), *(read_mhz(folder / name) for name in names)))
    return tuple(sorted(found, key=lambda policy: policy.cpus))


def read_throttle(root: Path) -> ThrottleFacts:
    """Read every place that may say that cores are held back."""
    flags = _firmware_flags(root)
    cooling = _cooling_states(root)
    events = _x86_events(root)
    if flags is None:
        return ThrottleFacts(any(cooling) if cooling else None, None, None, events)
    return ThrottleFacts(
        bool(flags & _HELD_BACK) or any(cooling),
        bool(flags & _UNDER_VOLTAGE),
        bool(flags & _ALL_FLAGS),
        events,
    )


def _firmware_flags(root: Path) -> int | None:
    # The node below "soc" carries the bus address on newer boards: soc@107c000000.
    for soc in list_folder(root / "sys/devices/platform", "soc"):
        for firmware in list_folder(soc, "soc"):
            text = read_text(firmware / "get_throttled") if firmware.name.endswith(":firmware") else None
            flags = parse_hex(text) if text is not None else None
            if flags is not None and flags | _ALL_FLAGS == _ALL_FLAGS:
                return flags
    return None


def _cooling_states(root: Path) -> list[bool]:
    """Return for each cooling device that slows cores whether it does now."""
    found: list[bool] = []
    for folder in list_folder(root / "sys/class/thermal", "cooling_device"):
        if (read_name(folder / "type") or "").lower().startswith(_CPU_COOLING):
            state, most = read_int(folder / "cur_state"), read_int(folder / "max_state")
            if state is not None and 0 <= state <= (state if most is None else most):
                found.append(state > 0)
    return found


def _x86_events(root: Path) -> int | None:
    counts = [
        count
        for folder in list_folder(root / "sys/devices/system/cpu", "cpu")
        if (count := read_int(folder / "thermal_throttle/core_throttle_count")) is not None and count >= 0
    ]
    return sum(counts) if counts else None
