from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from edgephi.cli.checks import (
    Status,
    check_cores,
    check_cpu,
    check_heat,
    check_linker,
    check_memory,
    check_models_disk,
    check_power,
    check_threads,
)
from edgephi.profile.machine.cores import CoreCluster
from edgephi.profile.machine.power import Battery, PowerFacts, PowerSource
from edgephi.profile.machine.probe import CpuFacts, DeviceFacts, LimitFacts, LiveFacts, MemoryFacts, OsFacts
from edgephi.profile.machine.thermal import ThermalZone, TripPoint
from edgephi.profile.machine.throttle import ThrottleFacts

PI5 = DeviceFacts(
    board="Raspberry Pi 5 Model B Rev 1.0",
    cpu=CpuFacts(
        model="Cortex-A76",
        arch="aarch64",
        features=frozenset({"fp", "asimd", "atomics", "crc32", "asimdrdm", "fphp", "asimdhp", "asimddp"}),
        isa_level="armv8.2-dotprod",
        clusters=(CoreCluster((0, 1, 2, 3), 2400, "Cortex-A76", "ondemand"),),
    ),
    memory=MemoryFacts(8_000_000_000, 6_100_000_000),
    limits=LimitFacts(memory_bytes=None, cpu_cores=None, allowed_cpus=(0, 1, 2, 3)),
    os=OsFacts("Debian GNU/Linux 12 (bookworm)", "6.6.51"),
)


def test_a_good_board_passes() -> None:
    """A Raspberry Pi 5 with free memory passes each check of the machine and is described."""
    found = [check_cpu(PI5), check_cores(PI5), check_memory(PI5)]
    assert {check.status for check in found} == {Status.OK}
    assert found[1].found == "4 usable of 4 x Cortex-A76 2400 MHz"


def test_cpu_without_a_level_fails_with_the_reason() -> None:
    """A CPU that no level fits fails, and the remedy names what it lacks."""
    cpu = dataclasses.replace(PI5.cpu, features=frozenset({"fp"}), isa_level=None)
    check = check_cpu(dataclasses.replace(PI5, cpu=cpu))
    assert check.status is Status.FAIL
    assert "asimd" in str(check.remedy)


def test_old_cpu_is_a_warning() -> None:
    """A level without dot products works, with a warning about its speed."""
    cpu = dataclasses.replace(PI5.cpu, isa_level="armv8.0")
    assert check_cpu(dataclasses.replace(PI5, cpu=cpu)).status is Status.WARN


def warm(celsius: float, throttle: ThrottleFacts | None = None) -> LiveFacts:
    """A board of that temperature, whose kernel slows its cores down at 80 degrees."""
    zone = ThermalZone("cpu-thermal", celsius, (TripPoint("passive", 80.0), TripPoint("critical", 110.0)))
    return LiveFacts(None, None, (ThermalZone("pmic", 30.0), zone), throttle=throttle or ThrottleFacts())


def test_heat_near_its_trip_is_a_warning() -> None:
    """A cool board passes; one near where it is slowed down, or that was, is warned about with what to do."""
    cool = check_heat(warm(55.0))
    assert (cool.status, cool.found) == (Status.OK, "55 °C (cpu-thermal), slowed down from 80 °C")
    for live in (
        warm(75.0),
        warm(55.0, ThrottleFacts(is_throttled=True)),
        warm(55.0, ThrottleFacts(was_throttled=True)),
    ):
        check = check_heat(live)
        assert check.status is Status.WARN
        assert "fan" in str(check.remedy)


def test_power_that_limits_speed_is_a_warning() -> None:
    """Low voltage and a battery are warnings; mains is fine."""
    weak = check_power(warm(50.0, ThrottleFacts(is_under_voltage=True)))
    assert (weak.status, "power supply" in str(weak.remedy)) == (Status.WARN, True)
    on_battery = PowerFacts(PowerSource.BATTERY, (Battery("BAT0", 61, "Discharging"),))
    check = check_power(dataclasses.replace(warm(50.0), power=on_battery))
    assert (check.status, check.found) == (Status.WARN, "battery, charged to 61 %")
    mains = check_power(dataclasses.replace(warm(50.0), power=PowerFacts(PowerSource.MAINS)))
    assert mains.status is Status.OK
    assert check_power(warm(50.0, ThrottleFacts(is_under_voltage=False))).found == "voltage is enough"


def test_powersave_and_quota_are_warnings() -> None:
    """A governor that keeps clocks low, or a quota below the cores, is a warning that says what to do."""
    slow = dataclasses.replace(PI5.cpu, clusters=(CoreCluster((0,), 1000, None, "powersave"),))
    governor = check_cores(dataclasses.replace(PI5, cpu=slow))
    assert (governor.status, "performance" in str(governor.remedy)) == (Status.WARN, True)
    limits = dataclasses.replace(PI5.limits, cpu_cores=1.5)
    quota = check_cores(dataclasses.replace(PI5, limits=limits))
    assert (quota.status, "--threads 1" in str(quota.remedy)) == (Status.WARN, True)


def test_the_chosen_cores_and_the_reason_are_said() -> None:
    """Doctor says how many threads would compute, on which CPUs, and why; without known cores it warns."""
    assert check_threads(PI5).found == "3 for Phi-3-mini on any CPU: all of 4 cores, less one for the network front"
    clusters = (CoreCluster((4, 5), 2400, "Cortex-A76", None), CoreCluster((0, 1, 2, 3), 1800, "Cortex-A55", None))
    limits = dataclasses.replace(PI5.limits, allowed_cpus=tuple(range(6)))
    phone = dataclasses.replace(PI5, cpu=dataclasses.replace(PI5.cpu, clusters=clusters), limits=limits)
    assert check_threads(phone).found == "2 for Phi-3-mini on CPUs 4, 5: all of 2 fast cores of 6"
    nothing = dataclasses.replace(PI5.cpu, clusters=())
    unknown = dataclasses.replace(PI5, cpu=nothing, limits=dataclasses.replace(limits, allowed_cpus=()))
    assert check_threads(unknown).status is Status.WARN


@pytest.mark.parametrize(
    ("available", "limit", "status"),
    [
        (6_000_000_000, None, Status.OK),
        (6_000_000_000, 1_000_000_000, Status.WARN),
        (1_000_000_000, None, Status.WARN),
        (100_000_000, None, Status.FAIL),
        (None, None, Status.WARN),
    ],
)
def test_memory_counts_the_smaller_of_free_and_limit(available: int | None, limit: int | None, status: Status) -> None:
    """What is free and what a container allows both bound the memory; the smaller decides."""
    memory = dataclasses.replace(PI5.memory, available_bytes=available)
    limits = dataclasses.replace(PI5.limits, memory_bytes=limit)
    assert check_memory(dataclasses.replace(PI5, memory=memory, limits=limits)).status is status


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models folder need not exist; a relative EDGEPHI_MODELS fails with the reason."""
    monkeypatch.setenv("EDGEPHI_MODELS", str(tmp_path / "a" / "b"))
    assert str(tmp_path / "a" / "b") in check_models_disk().found
    monkeypatch.setenv("EDGEPHI_MODELS", "relative")
    failed = check_models_disk()
    assert (failed.status, "absolute" in str(failed.remedy)) == (Status.FAIL, True)


def test_no_linker_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a C compiler compiled models still run, so it is a warning with what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = check_linker()
    assert check.status is Status.WARN
    assert "apt install gcc" in str(check.remedy)


def test_doctor_reports_this_machine(invoke: Any) -> None:
    """Doctor prints a line per check; its exit status says whether one failed; JSON has the same checks."""
    text, value = invoke("doctor"), invoke("doctor", "--json")
    report = json.loads(value.stdout)
    failed = any(check["status"] == "fail" for check in report["checks"])
    assert report["is_ready"] is not failed
    assert text.exit_code == value.exit_code == int(failed)
    assert all(check["name"] in text.stdout for check in report["checks"])
    assert all(check["remedy"] for check in report["checks"] if check["status"] != "ok")


def test_threads_can_be_left_to_the_program(invoke: Any, tiny: Path) -> None:
    """``auto`` is a value of --threads, what is no number and no ``auto`` is wrong on the command line."""
    arguments = ("run", "hi", "--engine", "fake", "--model", str(tiny))
    assert invoke(*arguments, "--threads", "auto").exit_code == 0
    for wrong in ("0", "-1", "all", "1.5", ""):
        assert invoke(*arguments, "--threads", wrong).exit_code == 2
