"""How a machine is doing: pressure, counters of control groups, clocks, throttling, power, swap and disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.profile.trees.build import (
    A55,
    A76,
    GIB,
    MIB,
    Files,
    arm,
    board,
    cooling,
    flags,
    plant,
    ram,
    supply,
    v1,
    v2,
    zone,
)

from edgephi.profile.machine.disk import read_disk
from edgephi.profile.machine.meminfo import SwapDevice, read_memory
from edgephi.profile.machine.power import Battery, PowerFacts, PowerSource, read_power
from edgephi.profile.machine.pressure import CgroupUse, Pressure, read_cgroup_use, read_memory_pressure
from edgephi.profile.machine.probe import probe, probe_live
from edgephi.profile.machine.thermal import ThermalZone, TripPoint, read_thermal_zones
from edgephi.profile.machine.throttle import FrequencyPolicy, ThrottleFacts, read_frequencies, read_throttle

PSI = "some avg10={} avg60=0.00 avg300=0.00 total=5\nfull avg10={} avg60=0.00 avg300=0.00 total=3\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"proc/pressure/memory": PSI.format("12.50", "3.10")}, Pressure(12.5, 3.1, False), id="machine"),
        pytest.param(
            {"proc/pressure/memory": PSI.format("90.00", "80.00")}
            | v2("/a", {"a": {"memory.pressure": PSI.format("2.00", "1.00")}}),
            Pressure(2.0, 1.0, True),
            id="own-group-first",
        ),
        pytest.param(
            {"proc/pressure/memory": PSI.format("9.00", "8.00")}
            | v2("/a/b", {"a": {"memory.pressure": PSI.format("2.00", "1.00")}}),
            Pressure(9.0, 8.0, False),
            id="not-an-ancestor's",
        ),
        pytest.param({"proc/pressure/memory": PSI.format("100.00", "100.00")}, Pressure(100, 100, False), id="all"),
        pytest.param({"proc/pressure/memory": PSI.format("100.01", "1.00")}, None, id="above-all"),
        pytest.param({"proc/pressure/memory": PSI.format("-1.00", "0.00")}, None, id="negative"),
        pytest.param({"proc/pressure/memory": "some avg10=1.00 avg60=0.00\n"}, None, id="half"),
    ],
)
def test_memory_pressure(tmp_path: Path, files: Files, expected: Pressure | None) -> None:
    """The own group's pressure counts, else the machine's; what is no percentage is unknown."""
    assert read_memory_pressure(plant(tmp_path, files)) == expected


def test_counters_of_version_2(tmp_path: Path) -> None:
    """Limits reached on any way up count, neighbours' do not, and quotas on the way up add up."""
    files = v2(
        "/a/b",
        {
            "a/b": {
                "memory.current": 700 * MIB,
                "memory.max": GIB,
                "memory.events.local": "low 0\nhigh 4\nmax 7\noom 1\noom_kill 1",
                "memory.events": "low 0\nhigh 9\nmax 9\noom 1\noom_kill 2",
                "cpu.stat": "usage_usec 9\nnr_periods 50\nnr_throttled 5\nthrottled_usec 1500",
            },
            "a": {
                "memory.events.local": "high 10\nmax 0",
                "memory.events": "high 999\nmax 999\noom_kill 99",
                "cpu.stat": "nr_throttled 2\nthrottled_usec 500",
            },
        },
    )
    assert read_cgroup_use(plant(tmp_path, files)) == CgroupUse(
        memory_bytes=700 * MIB,
        memory_left_bytes=GIB - 700 * MIB,
        high_events=14,
        max_events=7,
        oom_kill_events=2,
        cpu_throttled_periods=7,
        cpu_throttled_us=2000,
    )


def test_counters_of_version_2_before_local_events(tmp_path: Path) -> None:
    """An older kernel tells only of a group with those below it, which for the own group is enough."""
    files = v2("/a/b", {"a/b": {"memory.events": "high 3\nmax 2\noom_kill 0"}, "a": {"memory.events": "high 99"}})
    use = read_cgroup_use(plant(tmp_path, files))
    assert (use.high_events, use.max_events, use.oom_kill_events) == (3, 2, 0)


def test_counters_of_version_1(tmp_path: Path) -> None:
    """Version 1 counts failures of each group and throttled time in nanoseconds."""
    files = v1(
        "/a/b",
        {
            "a/b": {
                "memory.usage_in_bytes": 5 * MIB,
                "memory.failcnt": 3,
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
                "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 2500000",
            },
            "a": {"memory.failcnt": 10, "cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0"},
        },
    )
    assert read_cgroup_use(plant(tmp_path, files)) == CgroupUse(
        memory_bytes=5 * MIB,
        max_events=13,
        oom_kill_events=1,
        cpu_throttled_periods=4,
        cpu_throttled_us=2500,
    )


def test_no_groups_count_nothing(tmp_path: Path) -> None:
    """Without control groups every counter is unknown, not zero."""
    assert read_cgroup_use(tmp_path) == CgroupUse()


def test_clocks_of_each_policy(tmp_path: Path) -> None:
    """Cores that change frequency together are named with their clock, its limit now and the hardware's."""
    files = arm((4, A55, 1800), (4, A76, 2400), limit_mhz=1600)
    root = plant(tmp_path, files | {"sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "99999999999\n"})
    assert read_frequencies(root) == (
        FrequencyPolicy((0, 1, 2, 3), 1600, 1600, 1800),
        FrequencyPolicy((4, 5, 6, 7), None, 1600, 2400),
    )
    assert [(c.max_mhz, c.limit_mhz) for c in probe(root, arch="aarch64").cpu.clusters] == [(2400, 1600), (1800, 1600)]
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy0/affected_cpus").write_text("0 x 99999\n")
    assert [policy.cpus for policy in read_frequencies(root)] == [(4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, ThrottleFacts(), id="nothing-tells"),
        pytest.param(flags("soc", "0"), ThrottleFacts(False, False, False), id="pi-fine"),
        pytest.param(flags("soc", "0x50005"), ThrottleFacts(True, True, True), id="pi-weak-supply"),
        pytest.param(flags("soc@107c000000", "80008"), ThrottleFacts(True, False, True), id="pi5-soft-limit"),
        pytest.param(flags("soc", "50000"), ThrottleFacts(False, False, True), id="pi-earlier"),
        pytest.param(flags("soc", "1"), ThrottleFacts(False, True, True), id="pi-weak-but-not-slowed"),
        pytest.param(flags("soc", "throttled"), ThrottleFacts(), id="pi-words"),
        pytest.param(
            flags("soc", "0") | cooling(0, "cpufreq-cpu0", 1, 4), ThrottleFacts(True, False, False), id="both"
        ),
        pytest.param(cooling(0, "pwm-fan", 4, 4), ThrottleFacts(), id="a-fan"),
        pytest.param(cooling(0, "intel_powerclamp", -1, 100), ThrottleFacts(), id="state-below-zero"),
        pytest.param(
            {f"sys/devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": str(n) for n in (1, 2, 10)},
            ThrottleFacts(num_events=13),
            id="x86",
        ),
    ],
)
def test_throttling(tmp_path: Path, files: Files, expected: ThrottleFacts) -> None:
    """Firmware flags, cooling devices and counters say whether cores are held back; nothing else does."""
    assert read_throttle(plant(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "source"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(supply("usb", "USB", online=0), None, id="unplugged-and-no-battery"),
        pytest.param(supply("usb", "USB_PD", online=2), PowerSource.MAINS, id="programmable"),
        pytest.param(supply("BAT0", "Battery", capacity=5), None, id="battery-without-a-state"),
        pytest.param(supply("BAT0", "Battery", status="Not charging"), PowerSource.MAINS, id="held-at-a-charge"),
        pytest.param(supply("BAT0", "Battery", status="Unknown"), None, id="unknown"),
        pytest.param(supply("wacom", "Battery", status="Discharging", scope="Device"), None, id="a-pen's"),
        pytest.param(supply("BAT0", "Battery", status="Discharging", present=0), None, id="absent"),
        pytest.param(
            supply("AC", "Mains", online=1) | supply("BAT0", "Battery", status="Discharging"),
            PowerSource.MAINS,
            id="plugged-into-too-little",
        ),
    ],
)
def test_power_source(tmp_path: Path, files: Files, source: PowerSource | None) -> None:
    """Mains and battery are told apart only where the kernel does; batteries of other devices do not count."""
    assert read_power(plant(tmp_path, files)).source is source


def test_every_battery_is_named(tmp_path: Path) -> None:
    """A machine with two batteries has both, each with its charge and state."""
    files = supply("BAT0", "Battery", capacity=80, status="Discharging") | supply("BAT1", "Battery", capacity=101)
    assert read_power(plant(tmp_path, files)) == PowerFacts(
        PowerSource.BATTERY, (Battery("BAT0", 80, "Discharging"), Battery("BAT1", None, None))
    )


def test_trip_points(tmp_path: Path) -> None:
    """Trips keep the kernel's order; the lowest passive one is where throttling begins; absurd ones are left out."""
    files = zone(0, "soc", 50000, active=60000, passive=85000, critical=115000, hot=-274000) | {
        "sys/class/thermal/thermal_zone0/trip_point_10_temp": "75000\n",
        "sys/class/thermal/thermal_zone0/trip_point_10_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_11_temp": "75000\n",
    }
    trips = (("active", 60.0), ("passive", 85.0), ("critical", 115.0), ("passive", 75.0))
    (found,) = read_thermal_zones(plant(tmp_path, files))
    assert found == ThermalZone("soc", 50.0, tuple(TripPoint(*trip) for trip in trips))
    assert found.throttle_celsius == 75


def test_swap_and_zram(tmp_path: Path) -> None:
    """Swap on disk and in compressed RAM are told apart, with the RAM that the latter takes."""
    files = ram(2000, 1000, swap_mib=3000) | {
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0  partition\t1048576\t2048\t100\n"
        "/var/swap   file\t2097152\t0\t-2\n/broken file 5 9 0\n/short\n",
        "sys/block/zram0/mm_stat": " 2097152   600000   655360        0   700000        3        0        0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    memory = read_memory(plant(tmp_path, files))
    assert (memory.swap_total_bytes, memory.swap_free_bytes) == (3000 * MIB, 3000 * MIB)
    assert memory.swaps == (
        SwapDevice("/dev/zram0", True, GIB, 2 * MIB, 655360),
        SwapDevice("/var/swap", False, 2 * GIB, 0, None),
    )
    assert memory.huge_pages == "madvise"


def test_compatible_names_of_the_device_tree(tmp_path: Path) -> None:
    """The NUL-separated list is read most specific first; broken text is none."""
    root = plant(tmp_path, board("Raspberry Pi 5", "raspberrypi,5-model-b", "brcm,bcm2712"))
    assert probe(root, arch="aarch64").compatible == ("raspberrypi,5-model-b", "brcm,bcm2712")
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"a\xff\0b\0")
    assert probe(root, arch="aarch64").compatible == ()


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """The nearest folder above answers; a name the system cannot have is answered by its parents too."""
    found = read_disk(tmp_path / "a" / "b")
    assert found is not None
    assert found.folder == tmp_path / "a" / "b"
    assert 0 <= found.free_bytes <= found.total_bytes
    assert read_disk(tmp_path / "nul\0byte") is not None
    assert probe(tmp_path, arch="x86_64").disk is None
    assert probe(tmp_path, arch="x86_64", models=tmp_path).disk == read_disk(tmp_path)


def test_a_live_probe_holds_all_of_it(tmp_path: Path) -> None:
    """One call gives temperatures, pressure, counters, clocks, throttling and power."""
    files = (
        arm((1, A76, 2400))
        | ram(2000, 1000)
        | zone(0, "cpu", 50000)
        | supply("AC", "Mains", online=1)
        | flags("soc", "2")
        | v2("/", {"/": {"memory.current": MIB, "memory.pressure": PSI.format("1.00", "0.50")}})
    )
    live = probe_live(plant(tmp_path, files))
    assert live.available_bytes == 1000 * MIB
    assert [zone.celsius for zone in live.zones] == [50]
    assert live.pressure == Pressure(1.0, 0.5, True)
    assert live.cgroup.memory_bytes == MIB
    assert [policy.mhz for policy in live.frequencies] == [2400]
    assert live.throttle.is_throttled
    assert live.power.source is PowerSource.MAINS
