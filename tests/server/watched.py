"""A machine with every sensor, and a plan: what makes a server report all that it can."""

from __future__ import annotations

from types import MappingProxyType

from edgephi.profile.machine.power import Battery, PowerFacts, PowerSource
from edgephi.profile.machine.pressure import CgroupUse, Pressure
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.machine.thermal import ThermalZone, TripPoint
from edgephi.profile.machine.throttle import FrequencyPolicy, ThrottleFacts
from edgephi.profile.plan import PlanKind, PlanMemory, PredictedSpeed
from edgephi.profile.speed import StepTimes
from edgephi.profile.verification import ExpectedSpeed

MIB = 1 << 20

ALL_SENSORS = LiveFacts(
    resident_bytes=40 * MIB,
    available_bytes=900 * MIB,
    zones=(
        ThermalZone("cpu-thermal", 61.5, (TripPoint("passive", 80.0),)),
        ThermalZone("cpu-thermal", 60.0),
        ThermalZone("gpu-thermal", 55.25),
    ),
    pressure=Pressure(some_avg10=12.5, full_avg10=3.0, is_own=True),
    cgroup=CgroupUse(
        memory_bytes=500 * MIB,
        memory_left_bytes=300 * MIB,
        high_events=2,
        max_events=5,
        oom_kill_events=1,
        cpu_throttled_periods=7,
        cpu_throttled_us=2_500_000,
    ),
    frequencies=(FrequencyPolicy((0, 1, 2, 3), 1500, 2000, 2400), FrequencyPolicy((4, 6), None, None, 1800)),
    throttle=ThrottleFacts(is_throttled=True, is_under_voltage=False, was_throttled=True, num_events=9),
    power=PowerFacts(PowerSource.BATTERY, (Battery("BAT0", 75, "Discharging"),)),
    peak_resident_bytes=44 * MIB,
)
NO_SENSORS = LiveFacts(resident_bytes=None, available_bytes=None, zones=())

PLANNED = MappingProxyType(
    {
        "kind": PlanKind.CALIBRATED,
        "floor_tokens_per_s": 12.0,
        "predicted": PredictedSpeed(
            each_empty_tokens_per_s=20.0, each_full_tokens_per_s=13.0, time_to_first_token_s=2.5
        ),
        "memory": PlanMemory(
            weights_bytes=20 * MIB, kv_bytes=10 * MIB, workspace_bytes=5 * MIB, process_bytes=65 * MIB,
            reserve_bytes=10 * MIB, budget_bytes=200 * MIB,
        ),
    }
)  # fmt: skip
EXPECTED = ExpectedSpeed(
    times=StepTimes(threads=1, rows=((1, 0.05),), kv_s_per_byte=0.0, prefill_s_per_pair=0.0), kv_bytes_per_token=64
)
