"""
Machines whose files are absent, unreadable, stuck or absurd: what cannot be known is None, and nothing else suffers.
"""

from __future__ import annotations

from tests.profile.trees.build import (
    A76,
    GIB,
    MIB,
    Content,
    Expected,
    Files,
    Odd,
    Tree,
    arm,
    cooling,
    flags,
    process,
    ram,
    supply,
    v2,
    zone,
)

from edgephi.profile.machine.memory_limits import BoundKind
from edgephi.profile.machine.power import PowerSource

PATHS = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/swaps",
    "proc/version",
    "proc/self/auxv",
    "proc/self/cgroup",
    "proc/self/limits",
    "proc/self/mountinfo",
    "proc/self/status",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/pressure/memory",
    "proc/sys/kernel/osrelease",
    "etc/os-release",
    "run/systemd/container",
    "sys/block/zram0/mm_stat",
    "sys/class/dmi/id/product_name",
    "sys/class/power_supply/BAT0/capacity",
    "sys/class/power_supply/BAT0/online",
    "sys/class/power_supply/BAT0/status",
    "sys/class/power_supply/BAT0/type",
    "sys/class/thermal/cooling_device0/cur_state",
    "sys/class/thermal/cooling_device0/type",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_type",
    "sys/class/thermal/thermal_zone0/type",
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/devices/soc0/machine",
    "sys/devices/system/cpu/cpu0/cpu_capacity",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpufreq/policy0/affected_cpus",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",
    "sys/devices/system/cpu/online",
    "sys/fs/cgroup/cpu.cfs_period_us",
    "sys/fs/cgroup/cpu.cfs_quota_us",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/cpu.stat",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.events",
    "sys/fs/cgroup/memory.events.local",
    "sys/fs/cgroup/memory.failcnt",
    "sys/fs/cgroup/memory.high",
    "sys/fs/cgroup/memory.limit_in_bytes",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.oom_control",
    "sys/fs/cgroup/memory.pressure",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/memory.usage_in_bytes",
    "sys/kernel/mm/transparent_hugepage/enabled",
)
"""Every kind of file the probe reads."""

NOTHING = Expected(budget=None, kind=None)


def everywhere(content: Content) -> Files:
    """Return a tree in which every file is the same."""
    return dict.fromkeys(PATHS, content)


BROKEN = (
    Tree("empty-tree", {}, NOTHING),
    Tree("unreadable", everywhere(Odd.UNREADABLE), NOTHING),
    Tree("folders-in-place-of-files", everywhere(Odd.FOLDER), NOTHING),
    Tree("not-utf8", everywhere(b"\xff\xfe\x80\x81 \xc3\x28\n"), NOTHING),
    Tree("empty-files", everywhere(""), NOTHING),
    Tree("nul-bytes", everywhere("\0\0\0"), NOTHING),
    Tree(
        "files-in-place-of-folders",
        dict.fromkeys(("proc/self", "sys/class/thermal", "sys/devices/system/cpu", "sys/fs", "run", "etc"), "x"),
        NOTHING,
    ),
    Tree(
        "absurd-numbers",
        arm((2, A76, 99_999_999), (1, A76, 0))
        | {
            "proc/meminfo": "MemTotal: 99999999999999999999 kB\nMemAvailable: 88888888888888888888 kB\n",
            "proc/self/limits": "Max address space         99999999999999999999 unlimited            bytes\n",
            "proc/self/status": "RssAnon: 99999999999999999999 kB\nCpus_allowed_list: 0-999999999\n",
        }
        | v2("/a", {"a": {"memory.max": "9" * 20, "memory.high": -1, "cpu.max": "9999999999 1"}})
        | zone(0, "cpu-thermal", 999999999)
        | zone(1, "cpu-thermal", 45000, passive=-274000, hot=999999, critical=110000)
        | cooling(0, "cpufreq-cpu0", 99, 3)
        | flags("soc", "ffffffffffff")
        | supply("BAT0", "Battery", capacity=4000, status="Exploding"),
        Expected(
            budget=None,
            kind=None,
            clusters=((3, None, "Cortex-A76"),),
            zones=(("cpu-thermal", 45.0, None),),
            charge=(None,),
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "more-free-than-there-is",
        ram(1000, 4000) | v2("/", {"/": {"memory.max": GIB, "memory.current": 0}}),
        Expected(budget=GIB, kind=BoundKind.CGROUP, limit=GIB),
    ),
    Tree(
        "wrong-units",
        {"proc/meminfo": "MemTotal: 8 GB\nMemAvailable: 5000 MB\n", "proc/self/limits": "Max address space 4 GiB\n"},
        NOTHING,
    ),
    Tree(
        "negative-numbers",
        {"proc/meminfo": "MemTotal: -8000 kB\nMemAvailable: -5 kB\n"}
        | v2("/", {"/": {"memory.max": -1, "memory.current": -7, "cpu.max": "-1 -1"}})
        | supply("BAT0", "Battery", capacity=-3, status="Discharging", present=-1),
        Expected(budget=None, kind=None, charge=(None,), power=PowerSource.BATTERY),
    ),
    Tree(
        "usage-that-cannot-be-read",
        ram(4032, 3000) | v2("/", {"/": {"memory.max": GIB, "memory.current": "lots", "memory.stat": "anon"}}),
        Expected(budget=GIB, kind=BoundKind.CGROUP, limit=GIB),
    ),
    Tree(
        "sensors-that-are-not-connected",
        zone(0, "cpu-thermal", -40000) | zone(1, "cpu-thermal", 127000) | zone(2, "gpu", "") | zone(3, "ddr", 41500),
        Expected(budget=None, kind=None, zones=(("ddr", 41.5, None),)),
    ),
    Tree(
        "stuck-sensor-at-zero",
        zone(0, "cpu-thermal", 0, passive=0, critical=0) | ram(4032, 3000),
        Expected(budget=(3000 - 252) * MIB, kind=BoundKind.MACHINE, zones=(("cpu-thermal", 0.0, None),)),
    ),
    Tree(
        "no-cgroup-mount",
        ram(4032, 3000) | process("0-3") | {"proc/self/cgroup": "0::/a\n"},
        Expected(budget=(3000 - 252) * MIB, kind=BoundKind.MACHINE, allowed=4),
    ),
    Tree(
        "no-cores-listed-but-a-mask",
        process("0,2-3"),
        Expected(budget=None, kind=None, allowed=3),
    ),
)
