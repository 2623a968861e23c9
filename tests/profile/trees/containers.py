"""
Containers, service managers and the limits they set, on a machine that has more than they allow.

Constructed from what each writes for the control groups of its version.
"""

from __future__ import annotations

from tests.profile.trees.build import (
    A76,
    GIB,
    MIB,
    V1_UNLIMITED,
    Expected,
    Files,
    Tree,
    address_space,
    arm,
    process,
    ram,
    v1,
    v2,
)

from edgephi.profile.machine.host import HostKind
from edgephi.profile.machine.memory_limits import BoundKind

# A Raspberry Pi 5 with 8 GB, of which 7000 MiB are free and 504 are left to the system.
HOST = arm((4, A76, 2400)) | ram(8064, 7000) | process("0-3")
FREE = (7000 - 504) * MIB
DOCKER = "/docker/3f5c"
POD = "/kubepods.slice/kubepods-pod1f.slice"
V1_POD = "/kubepods/burstable/pod1f"


def on_host(
    name: str,
    files: Files,
    *,
    budget: int = FREE,
    kind: BoundKind = BoundKind.MACHINE,
    limit: int | None = None,
    cpu: float | None = None,
    host: HostKind = HostKind.NONE,
    allowed: int = 4,
) -> Tree:
    """Return the host with more files; what they change of its facts is named."""
    clusters = ((4, 2400, "Cortex-A76"),)
    expected = Expected(
        budget=budget,
        kind=kind,
        limit=limit,
        cpu=cpu,
        allowed=allowed,
        clusters=clusters,
        host=host,
        level="armv8.2-dotprod",
    )
    return Tree(name, HOST | files, expected)


CONTAINERS = (
    on_host(
        "pi5-8gb-docker-v2-2g",
        v2("/", {"/": {"memory.max": 2 * GIB, "memory.current": 300 * MIB, "cpu.max": "200000 100000"}})
        | {".dockerenv": "", "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {50 * MIB}\nactive_file 0\n"},
        budget=2 * GIB - 250 * MIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        cpu=2.0,
        host=HostKind.DOCKER,
    ),
    on_host(
        "docker-v2-host-namespace",
        v2(
            "/system.slice/docker-3f5c.scope",
            {"system.slice/docker-3f5c.scope": {"memory.max": GIB, "memory.high": "max", "memory.current": 0}},
        ),
        budget=GIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
        host=HostKind.DOCKER,
    ),
    on_host(
        "docker-limit-above-what-is-free",
        v2("/", {"/": {"memory.max": 64 * GIB, "memory.current": 0}}) | {".dockerenv": ""},
        limit=64 * GIB,
        host=HostKind.DOCKER,
    ),
    on_host(
        "docker-with-cpuset",
        v2("/", {"/": {"cpuset.cpus.effective": "2-3", "cpu.max": "max 100000"}}) | process("2-3") | {".dockerenv": ""},
        host=HostKind.DOCKER,
        allowed=2,
    ),
    on_host(
        "docker-v1",
        v1(
            DOCKER,
            {
                "/": {
                    "memory.limit_in_bytes": 3 * GIB,
                    "memory.usage_in_bytes": GIB,
                    "cpu.cfs_quota_us": 150000,
                    "cpu.cfs_period_us": 100000,
                }
            },
            subtree=DOCKER,
        )
        | {".dockerenv": "", "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}\ninactive_file 5\n"},
        budget=3 * GIB,
        kind=BoundKind.CGROUP,
        limit=3 * GIB,
        cpu=1.5,
        host=HostKind.DOCKER,
    ),
    on_host(
        "docker-v1-in-its-own-namespace",
        v1("/", {"/": {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 24 * MIB}}, subtree="/docker/3f5c")
        | {".dockerenv": ""},
        budget=1000 * MIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
        host=HostKind.DOCKER,
    ),
    on_host(
        "docker-in-docker",
        v2(
            "/docker/in",
            {"/": {"memory.max": 2 * GIB, "memory.current": GIB}, "docker/in": {"memory.max": 4 * GIB}},
        )
        | {".dockerenv": ""},
        budget=GIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        host=HostKind.DOCKER,
    ),
    on_host(
        "podman-rootless",
        v2(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-9a.scope/container",
            {
                "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-9a.scope": {"memory.max": 3 * GIB},
                "user.slice/user-1000.slice": {"memory.high": 2 * GIB, "memory.current": 512 * MIB},
                "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-9a.scope/container": {
                    "memory.max": "max"
                },
            },
        )
        | {"run/.containerenv": 'engine="podman-4.9.3"\nrootless=1\n'},
        budget=2 * GIB - 512 * MIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        host=HostKind.PODMAN,
    ),
    on_host(
        "podman-without-limits",
        v2("/", {"/": {"memory.max": "max", "memory.high": "max", "cpu.max": "max 100000"}})
        | {"run/.containerenv": "", "run/systemd/container": "podman\n"},
        host=HostKind.PODMAN,
    ),
    on_host(
        "k8s-guaranteed-pod-v2",
        v2("/", {"/": {"memory.max": 4 * GIB, "memory.current": 64 * MIB, "cpu.max": "400000 100000"}})
        | {"run/secrets/kubernetes.io/serviceaccount/namespace": "default"},
        budget=4 * GIB - 64 * MIB,
        kind=BoundKind.CGROUP,
        limit=4 * GIB,
        cpu=4.0,
        host=HostKind.KUBERNETES,
    ),
    on_host(
        "k8s-pod-limit-above-the-container",
        v2(
            f"{POD}/cri-containerd-77.scope",
            {
                f"{POD}/cri-containerd-77.scope": {"memory.max": "max", "cpu.max": "max 100000"},
                POD: {"memory.max": 2 * GIB, "memory.current": 1536 * MIB, "cpu.max": "50000 100000"},
                "/kubepods.slice": {"memory.max": 6 * GIB, "memory.current": 3 * GIB},
            },
        ),
        budget=512 * MIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        cpu=0.5,
        host=HostKind.KUBERNETES,
    ),
    on_host(
        "k8s-v1-nested",
        v1(
            f"{V1_POD}/77",
            {
                f"{V1_POD}/77": {"memory.limit_in_bytes": V1_UNLIMITED, "cpu.cfs_quota_us": -1},
                V1_POD: {
                    "memory.limit_in_bytes": 3 * GIB,
                    "memory.usage_in_bytes": 2 * GIB,
                    "memory.use_hierarchy": 1,
                    "cpu.cfs_quota_us": 250000,
                    "cpu.cfs_period_us": 100000,
                },
                "/kubepods": {"memory.limit_in_bytes": 5 * GIB, "memory.usage_in_bytes": 4608 * MIB},
            },
        ),
        budget=512 * MIB,
        kind=BoundKind.CGROUP,
        limit=3 * GIB,
        cpu=2.5,
        host=HostKind.KUBERNETES,
    ),
    on_host(
        "k8s-v1-pod-limit-not-visible",
        v1(
            f"{V1_POD}/77",
            {"/": {"memory.limit_in_bytes": V1_UNLIMITED, "memory.usage_in_bytes": 200 * MIB}},
            subtree=f"{V1_POD}/77",
        )
        | {"sys/fs/cgroup/memory/memory.stat": f"cache 0\nhierarchical_memory_limit {2 * GIB}\n"},
        budget=2 * GIB - 200 * MIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        host=HostKind.KUBERNETES,
    ),
    on_host(
        "lxc",
        v2("/", {"/": {"memory.max": 1536 * MIB, "memory.current": 100 * MIB}})
        | ram(1536, 1400)  # lxcfs shows the limit as the machine's memory
        | {"run/systemd/container": "lxc\n"},
        budget=(1400 - 128) * MIB,
        limit=1536 * MIB,
        host=HostKind.LXC,
    ),
    on_host(
        "lxc-payload-v1",
        v1("/lxc.payload.web", {"lxc.payload.web": {"memory.limit_in_bytes": GIB}}),
        budget=GIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
        host=HostKind.LXC,
    ),
    on_host(
        "systemd-nspawn",
        v2("/", {}) | {"run/host/container-manager": "systemd-nspawn\n"},
        host=HostKind.CONTAINER,
    ),
    on_host(
        "systemd-MemoryMax-slice",
        v2(
            "/edge.slice/edgephi.service",
            {
                "edge.slice": {"memory.max": 3 * GIB, "memory.current": 700 * MIB, "cpu.max": "300000 100000"},
                "edge.slice/edgephi.service": {"memory.max": "max", "cpu.max": "max 100000"},
            },
        ),
        budget=3 * GIB - 700 * MIB,
        kind=BoundKind.CGROUP,
        limit=3 * GIB,
        cpu=3.0,
        host=HostKind.SYSTEMD,
    ),
    on_host(
        "systemd-MemoryHigh-below-MemoryMax",
        v2(
            "/system.slice/edgephi.service",
            {"system.slice/edgephi.service": {"memory.max": 3 * GIB, "memory.high": 2 * GIB, "memory.current": 0}},
        ),
        budget=2 * GIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
        host=HostKind.SYSTEMD,
    ),
    on_host(
        "systemd-own-memory-counts-as-usable",
        process("0-3", own_mib=90) | v2("/a.service", {"a.service": {"memory.max": GIB, "memory.current": 100 * MIB}}),
        budget=GIB - 10 * MIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
        host=HostKind.SYSTEMD,
    ),
    on_host(
        "tiny-cpu-quota",
        v2("/b.service", {"b.service": {"cpu.max": "1000 100000"}}),
        cpu=0.01,
        host=HostKind.SYSTEMD,
    ),
    on_host(
        "hybrid",
        v1("/system.slice/edge", {"system.slice/edge": {"memory.limit_in_bytes": 3 * GIB, "cpu.cfs_quota_us": 200000}})
        | {
            "proc/self/cgroup": "5:memory:/system.slice/edge\n4:cpu,cpuacct:/\n0::/system.slice/edge.service\n",
            "proc/self/mountinfo": "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            "33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n",
            "sys/fs/cgroup/unified/system.slice/edge.service/cgroup.procs": "1\n",
        },
        budget=3 * GIB,
        kind=BoundKind.CGROUP,
        limit=3 * GIB,
        host=HostKind.SYSTEMD,
    ),
    on_host(
        "limit-only-on-the-furthest-ancestor",
        v2("/a/b/c/d", {"a": {"memory.max": GIB, "memory.current": 0, "cpu.max": "100000 100000"}, "a/b/c/d": {}}),
        budget=GIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
        cpu=1.0,
    ),
    on_host(
        "max-everywhere",
        v2(
            "/a/b",
            {path: {"memory.max": "max", "memory.high": "max", "cpu.max": "max 100000"} for path in ("a", "a/b")},
        ),
    ),
    on_host(
        "v1-groups-that-do-not-inherit",
        v1(
            "/a/b",
            {
                "a/b": {"memory.limit_in_bytes": 2 * GIB, "memory.use_hierarchy": 0},
                "a": {"memory.limit_in_bytes": MIB, "memory.use_hierarchy": 0},
            },
        ),
        budget=2 * GIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
    ),
    on_host(
        "another-service-mounted-beside",
        v2("/a", {"a": {"memory.max": 2 * GIB}})
        | {
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
            "40 23 0:26 /other /mnt/other ro - cgroup2 cgroup rw\n",
            "mnt/other/memory.max": f"{MIB}\n",
        },
        budget=2 * GIB,
        kind=BoundKind.CGROUP,
        limit=2 * GIB,
    ),
    on_host(
        "group-that-was-removed",
        v2("/a/gone (deleted)", {"a": {"memory.max": GIB, "memory.current": 24 * MIB}}),
        budget=1000 * MIB,
        kind=BoundKind.CGROUP,
        limit=GIB,
    ),
    on_host("swap-only", ram(8064, 7000, swap_mib=65536) | address_space("unlimited")),
    on_host(
        "address-space-limit",
        address_space(4 * GIB),
        # 1 GiB and 160 MiB for each of four cores hold no memory.
        budget=3 * GIB - 640 * MIB,
        kind=BoundKind.ADDRESS_SPACE,
    ),
    on_host("address-space-limit-below-what-is-mapped", address_space(GIB), budget=0, kind=BoundKind.ADDRESS_SPACE),
    on_host(
        "group-that-is-over-its-limit",
        v2("/a", {"a": {"memory.max": GIB, "memory.current": 2 * GIB}}),
        budget=0,
        kind=BoundKind.CGROUP,
        limit=GIB,
    ),
)
