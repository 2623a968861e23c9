"""
Metrics of the machine: heat, clocks, power, memory and what its control groups allow.

Owns their names. Sensors are read by ``edgephi.server.sensors``; one that is absent has no series.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgephi.profile.machine.power import PowerSource
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.machine.thermal import ThermalZone
from edgephi.profile.machine.throttle import FrequencyPolicy
from edgephi.server.metric_table import Row, Values


def _temperatures(live: LiveFacts) -> Values:
    return {(name,): zone.celsius for name, zone in _named(live)}


def _trips(live: LiveFacts) -> Values:
    return {(name,): zone.throttle_celsius for name, zone in _named(live)}


def _named(live: LiveFacts) -> Iterator[tuple[str, ThermalZone]]:
    """Yield each zone with a name of its own: several may share the kernel's."""
    seen: Counter[str] = Counter()
    for zone in live.zones:
        seen[zone.name] += 1
        yield (zone.name if seen[zone.name] == 1 else f"{zone.name}#{seen[zone.name]}"), zone


def _clocks(live: LiveFacts) -> Values:
    return {(_cpus(policy),): _hertz(policy.mhz) for policy in live.frequencies}


def _clock_limits(live: LiveFacts) -> Values:
    return {(_cpus(policy),): _hertz(policy.limit_mhz) for policy in live.frequencies}


def _clock_maxima(live: LiveFacts) -> Values:
    return {(_cpus(policy),): _hertz(policy.max_mhz) for policy in live.frequencies}


def _cpus(policy: FrequencyPolicy) -> str:
    """Return the cores of a policy as the kernel writes lists, such as ``0-3``."""
    runs: list[list[int]] = []
    for cpu in policy.cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _hertz(mhz: int | None) -> float | None:
    return None if mhz is None else mhz * 1e6


def _charges(live: LiveFacts) -> Values:
    return {
        (battery.name,): None if battery.percent is None else battery.percent / 100 for battery in live.power.batteries
    }


def _on_battery(live: LiveFacts) -> bool | None:
    return None if live.power.source is None else live.power.source is PowerSource.BATTERY


def _pressure(live: LiveFacts) -> Values:
    pressure = live.pressure
    if pressure is None:
        return {}
    return {("some",): pressure.some_avg10 / 100, ("full",): pressure.full_avg10 / 100}


def _cpu_throttled_s(live: LiveFacts) -> float | None:
    return None if live.cgroup.cpu_throttled_us is None else live.cgroup.cpu_throttled_us / 1e6


DEVICE_ROWS: tuple[Row[LiveFacts], ...] = (
    Row("device_temperature_celsius", "Temperature of a thermal zone.", _temperatures, ("zone",)),
    Row("device_throttle_temperature_celsius", "Where a thermal zone slows cores down.", _trips, ("zone",)),
    Row("device_frequency_hertz", "Clock of the cores that change it together.", _clocks, ("cpus",)),
    Row("device_frequency_limit_hertz", "Highest clock that cooling or power allow now.", _clock_limits, ("cpus",)),
    Row("device_frequency_max_hertz", "Highest clock of the hardware.", _clock_maxima, ("cpus",)),
    Row("device_throttled", "1 while heat or voltage slow cores down.", lambda live: live.throttle.is_throttled),
    Row("device_under_voltage", "1 while the power supply is too weak.", lambda live: live.throttle.is_under_voltage),
    Row(
        "device_throttle_events",
        "Times x86 cores were slowed down by heat.",
        lambda live: live.throttle.num_events,
        is_counter=True,
    ),
    Row("device_on_battery", "1 while the machine runs on a battery.", _on_battery),
    Row("device_battery_charge_ratio", "Charge of a battery, 0 to 1.", _charges, ("battery",)),
    Row(
        "device_memory_available_bytes",
        "Memory of the machine that can be had without swapping.",
        lambda live: live.available_bytes,
    ),
    Row(
        "device_memory_pressure_ratio",
        "Part of the last 10 s in which some or all (full) tasks waited for memory; of the control group if it tells.",
        _pressure,
        ("tasks",),
    ),
    Row(
        "cgroup_memory_bytes",
        "Charged to the control group, page cache included.",
        lambda live: live.cgroup.memory_bytes,
    ),
    Row(
        "cgroup_memory_left_bytes",
        "What the tightest limit leaves, page cache counted as free.",
        lambda live: live.cgroup.memory_left_bytes,
    ),
    Row(
        "cgroup_memory_high_events",
        "Times a control group was slowed down for its size.",
        lambda live: live.cgroup.high_events,
        is_counter=True,
    ),
    Row(
        "cgroup_memory_limit_events",
        "Times a control group was at its limit; reading large files does it too.",
        lambda live: live.cgroup.max_events,
        is_counter=True,
    ),
    Row(
        "cgroup_oom_kills",
        "Processes of the control group that were killed for lack of memory.",
        lambda live: live.cgroup.oom_kill_events,
        is_counter=True,
    ),
    Row(
        "cgroup_cpu_throttled_seconds",
        "Time that threads were kept waiting by a CPU quota.",
        _cpu_throttled_s,
        is_counter=True,
    ),
)
