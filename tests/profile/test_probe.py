"""Probing constructed trees: boards, containers, and files that are absent or absurd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgephi.profile.machine.cgroup import CgroupLimits, read_available_memory, read_limits
from edgephi.profile.machine.cores import read_clusters
from edgephi.profile.machine.kernelfile import parse_cpu_list, parse_int, parse_kib, read_text
from edgephi.profile.machine.probe import DeviceFacts, ThermalZone, probe, probe_live
from edgephi.profile.plan import Plan, PlanKind

GIB = 1 << 30


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def arm_core(number: int, part: str, features: str = "fp asimd") -> str:
    """Return one processor's paragraph of /proc/cpuinfo."""
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    )


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    """A board with one kind of core: all facts are found."""
    features = "fp asimd crc32 atomics fphp asimdhp asimdrdm asimddp"
    files = {
        "proc/cpuinfo": "".join(arm_core(n, "0xd0b", features) for n in range(4)) + "Revision : d04170\n",
        "proc/meminfo": "MemTotal:        8256140 kB\nMemFree: 1 kB\nMemAvailable:    7000000 kB\n",
        "proc/self/status": "Name:\tpython\nVmRSS:\t  40000 kB\nCpus_allowed_list:\t0-3\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/sys/kernel/osrelease": "6.6.51+rpt-rpi-2712\n",
        "etc/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "sys/devices/system/cpu/online": "0-3\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "61250\n",
    }
    files |= {f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": "2400000\n" for n in range(4)}
    files |= {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "ondemand\n" for n in range(4)}
    facts = probe(plant(tmp_path, files), arch="aarch64")
    assert facts.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert (facts.cpu.model, facts.cpu.isa_level) == ("Cortex-A76", "armv8.2-dotprod")
    (cluster,) = facts.cpu.clusters
    assert (cluster.cpus, cluster.max_mhz, cluster.core, cluster.governor) == (
        (0, 1, 2, 3),
        2400,
        "Cortex-A76",
        "ondemand",
    )
    assert facts.memory.total_bytes == 8256140 * 1024
    assert facts.memory.available_bytes == 7000000 * 1024
    assert (facts.limits.memory_bytes, facts.limits.cpu_cores) == (None, None)
    assert facts.limits.allowed_cpus == (0, 1, 2, 3)
    assert (facts.os.name, facts.os.kernel) == ("Debian GNU/Linux 12 (bookworm)", "6.6.51+rpt-rpi-2712")
    live = probe_live(tmp_path)
    assert live.resident_bytes == 40000 * 1024
    assert live.zones == (ThermalZone("cpu-thermal", 61.25),)


def test_big_and_little_cores_are_told_apart_fastest_first(tmp_path: Path) -> None:
    """An RK3588 has two kinds of core in three frequency groups; offline cores are left out."""
    parts = {n: "0xd05" if n < 4 else "0xd0b" for n in range(8)}
    files = {
        "proc/cpuinfo": "".join(arm_core(n, part) for n, part in parts.items()),
        "sys/devices/system/cpu/online": "0-6",
    }
    for n in range(8):
        khz = 1800000 if n < 4 else 2400000 if n < 6 else 2352000
        files[f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq"] = str(khz)
    clusters = read_clusters(plant(tmp_path, files))
    assert [(c.cpus, c.max_mhz, c.core) for c in clusters] == [
        ((4, 5), 2400, "Cortex-A76"),
        ((6,), 2352, "Cortex-A76"),
        ((0, 1, 2, 3), 1800, "Cortex-A55"),
    ]


def test_capacities_tell_cores_apart_that_frequencies_do_not(tmp_path: Path) -> None:
    """The kernel's capacity orders cores before frequency does; absurd ones count as unknown."""
    files = {"sys/devices/system/cpu/online": "0-4"}
    for n, (capacity, khz) in enumerate([(400, 2000000), (400, 2000000), (1024, 1900000), (0, 1), (9999, 1)]):
        files[f"sys/devices/system/cpu/cpu{n}/cpu_capacity"] = str(capacity)
        files[f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq"] = str(khz)
    clusters = read_clusters(plant(tmp_path, files))
    assert [(c.cpus, c.capacity) for c in clusters] == [((2,), 1024), ((0, 1), 400), ((3, 4), None)]


def test_threads_of_one_core_are_grouped(tmp_path: Path) -> None:
    """CPUs that share a core are named together once, without offline ones; a core alone is no group."""
    files = {"sys/devices/system/cpu/online": "0-2,4-5"}
    for n, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5"]):
        files[f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list"] = siblings
    (cluster,) = read_clusters(plant(tmp_path, files))
    assert (cluster.cpus, cluster.smt) == ((0, 1, 2, 4, 5), ((0, 4), (1, 5)))


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    """Without a single file every fact is None or empty."""
    facts = probe(tmp_path, arch="riscv64")
    assert facts.board is None
    assert (facts.cpu.model, facts.cpu.features, facts.cpu.isa_level, facts.cpu.clusters) == (
        None,
        frozenset(),
        None,
        (),
    )
    assert (facts.memory.total_bytes, facts.limits.allowed_cpus, facts.os.name) == (None, (), None)
    assert probe_live(tmp_path).zones == ()


def test_absurd_values_are_left_out(tmp_path: Path) -> None:
    """Broken sensors, impossible frequencies, placeholders and wrong units count as unknown."""
    files = {
        "proc/meminfo": "MemTotal: lots kB\nMemAvailable: 5 MB\n",
        "proc/self/status": "Cpus_allowed_list: 0-99999\n",
        "sys/devices/system/cpu/online": "3-1",
        "proc/cpuinfo": "processor: x\nprocessor: 0\nCPU implementer: zz\nCPU part: 0xd0b\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "99999999999",
        "sys/class/dmi/id/product_name": "To Be Filled By O.E.M.\n",
        "sys/class/thermal/thermal_zone0/temp": "-274000",
        "sys/class/thermal/thermal_zone1/temp": "hot",
        "sys/class/thermal/thermal_zone10/temp": "20000",
        "sys/class/thermal/thermal_zone2/temp": "30000",
        "etc/os-release": "PRETTY_NAME=\n",
    }
    facts = probe(plant(tmp_path, files), arch="aarch64")
    assert facts.board is None
    assert (facts.memory.total_bytes, facts.memory.available_bytes) == (None, None)
    assert facts.limits.allowed_cpus == ()
    assert [(c.cpus, c.max_mhz, c.core) for c in facts.cpu.clusters] == [((0,), None, None)]
    assert facts.os.name is None
    assert [(z.name, z.celsius) for z in probe_live(tmp_path).zones] == [("thermal_zone2", 30), ("thermal_zone10", 20)]


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MEMORY = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_CPU = "32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        pytest.param({}, None, None, id="none"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/edgephi.service\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/system.slice/edgephi.service/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/edgephi.service/memory.high": str(3 * GIB),
                "sys/fs/cgroup/system.slice/memory.max": str(4 * GIB),
                "sys/fs/cgroup/system.slice/edgephi.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
            },
            3 * GIB,
            1.5,
            id="v2-service",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b/c\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/a/b/c/memory.max": str(8 * GIB),
                "sys/fs/cgroup/a/memory.max": str(2 * GIB),
            },
            2 * GIB,
            None,
            id="v2-ancestor-is-smaller",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                "sys/fs/cgroup/memory.max": str(GIB),
                "sys/fs/cgroup/cpu.max": "200000 100000",
            },
            GIB,
            2.0,
            id="v2-container-with-its-own-namespace",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/../../other\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/memory.max": str(GIB),
                "other/memory.max": "1",
            },
            GIB,
            None,
            id="v2-outside-its-namespace",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
                "proc/self/mountinfo": V1_MEMORY.replace(" / /sys", " /docker/abc /sys")
                + V1_CPU.replace(" / /sys", " /docker/abc /sys"),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2 * GIB,
            0.5,
            id="v1-container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/a/b\n4:cpu,cpuacct:/a\n",
                "proc/self/mountinfo": V1_MEMORY + V1_CPU,
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            GIB,
            None,
            id="v1-unlimited-leaf",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/a\n0::/b\n",
                "proc/self/mountinfo": V1_MEMORY + "33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/unified/b/memory.max": str(3 * GIB),
            },
            3 * GIB,
            None,
            id="hybrid",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/with space\n",
                "proc/self/mountinfo": "30 23 0:26 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\n",
                "sys/fs/c g/with space/memory.max": str(GIB),
            },
            GIB,
            None,
            id="escaped-mount-point",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a\nnonsense\n1:x\n",
                "proc/self/mountinfo": V2_MOUNT + "short line\n - cgroup2\n",
                "sys/fs/cgroup/a/memory.max": "0",
                "sys/fs/cgroup/a/memory.high": "-5",
                "sys/fs/cgroup/a/cpu.max": "100000 0",
                "sys/fs/cgroup/cpu.max": "100000",
            },
            None,
            None,
            id="absurd",
        ),
    ],
)
def test_the_smallest_limit_of_all_ancestors_counts(
    tmp_path: Path, files: dict[str, str], memory: int | None, cores: float | None
) -> None:
    """Version 1, version 2, both at once, namespaces and nonsense: the limit in force is found, or None."""
    root = tmp_path / "root"
    root.mkdir()
    assert read_limits(plant(root, files)) == CgroupLimits(memory, cores)


@pytest.mark.parametrize(
    ("files", "available"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/a/memory.max": str(4 * GIB),
                "sys/fs/cgroup/a/memory.current": str(3 * GIB),
                "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file {GIB // 2}\nfile {9 * GIB}\n",
            },
            4 * GIB - (3 * GIB - GIB - GIB // 2),
            id="v2-page-cache-is-available",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/a/b/memory.high": str(2 * GIB),
                "sys/fs/cgroup/a/memory.max": str(3 * GIB),
                "sys/fs/cgroup/a/memory.current": str(2 * GIB),
                "sys/fs/cgroup/memory.current": str(9 * GIB),
            },
            GIB,
            id="v2-neighbours-in-an-ancestor-count",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:memory:/a\n",
                "proc/self/mountinfo": V1_MEMORY,
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            2 * GIB - (GIB - GIB // 4),
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a\n",
                "proc/self/mountinfo": V2_MOUNT,
                "sys/fs/cgroup/a/memory.max": str(GIB),
                "sys/fs/cgroup/a/memory.current": str(2 * GIB),
                "sys/fs/cgroup/a/memory.stat": "inactive_file lots\nactive_file -5\n",
            },
            0,
            id="more-used-than-allowed",
        ),
    ],
)
def test_what_a_limit_leaves_counts_the_page_cache(
    tmp_path: Path, files: dict[str, str], available: int | None
) -> None:
    """Memory that others in the group use is not available, cached files are, and the tightest ancestor decides."""
    root = tmp_path / "root"
    root.mkdir()
    assert read_available_memory(plant(root, files)) == available


@given(text=st.text(max_size=60))
def test_parsers_never_raise(text: str) -> None:
    """Whatever a kernel file holds, a parser answers with a value within its type or nothing."""
    cpus = parse_cpu_list(text)
    assert list(cpus) == sorted(set(cpus))
    number = parse_int(text)
    assert number is None or isinstance(number, int)
    assert parse_kib(text) is None or (parse_kib(text) or 0) >= 0


@given(cpus=st.frozensets(st.integers(0, 4095), min_size=1, max_size=50))
def test_a_cpu_list_is_read_back(cpus: frozenset[int]) -> None:
    """What the kernel writes for a set of CPUs is read as that set."""
    assert parse_cpu_list(",".join(map(str, cpus))) == tuple(sorted(cpus))
    low, high = min(cpus), max(cpus)
    assert parse_cpu_list(f"{low}-{high}") == tuple(range(low, high + 1))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_a_probe_never_raises(tmp_path: Path, content: bytes) -> None:
    """Arbitrary bytes in every file give facts, not an exception."""
    for name in ("proc/cpuinfo", "proc/meminfo", "proc/self/status", "proc/self/cgroup", "proc/self/mountinfo"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert isinstance(probe(tmp_path, arch="aarch64"), DeviceFacts)


def test_folders_in_place_of_files_are_unknown(tmp_path: Path) -> None:
    """A path that is no file reads as nothing."""
    (tmp_path / "proc/cpuinfo").mkdir(parents=True)
    assert read_text(tmp_path / "proc/cpuinfo") is None
    assert probe(tmp_path, arch="x86_64").cpu.model is None


def test_this_machine_can_be_probed() -> None:
    """On the running Linux machine the facts that every kernel has are there."""
    facts = probe()
    assert facts.memory.total_bytes is not None
    assert facts.memory.total_bytes > 64 << 20
    assert facts.cpu.clusters
    assert facts.limits.allowed_cpus
    assert probe_live().resident_bytes


def test_a_plan_claims_nothing_by_itself() -> None:
    """A plan made of flags is STATIC and predicts nothing."""
    plan = Plan(
        context_tokens=4096,
        max_running=2,
        prefill_chunk_tokens=64,
        mixed_chunk_tokens=16,
        default_max_tokens=2048,
        page_tokens=16,
        num_pages=512,
    )
    assert plan.kind is PlanKind.STATIC
    assert (plan.predicted, plan.meets_floor, plan.binding_limit, plan.remedies) == (None, None, None, ())
    assert plan.memory.weights_bytes is None
