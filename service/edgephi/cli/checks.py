"""
What ``edgephi doctor`` looks at: each check reads one thing and says whether it is fine and what to do.

Owns the limits that make a warning. Prints nothing.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgephi.cli.output import format_bytes
from edgephi.errors import EdgephiError

if TYPE_CHECKING:
    from edgephi.profile.machine.probe import DeviceFacts, LiveFacts

# Phi-3-mini in 4 bits: 2.2 GB of weights, pages for a few thousand tokens, the process itself.
PHI3_MINI_MEMORY_BYTES = 3_000_000_000
PHI3_MINI_WEIGHTS_BYTES = 2_150_000_000
# The download and the packed weights beside it, each 2.2 GB.
PHI3_MINI_DISK_BYTES = 5_000_000_000
POCKET_MEMORY_BYTES = 300_000_000
POCKET_DISK_BYTES = 100_000_000
# Closer to where the kernel slows cores down than this, a few minutes of answers reach it.
MIN_HEAT_MARGIN_CELSIUS = 8.0
SLOW_GOVERNORS = frozenset({"powersave", "conservative"})


class Status(enum.Enum):
    """Outcome of a check."""

    OK = "ok"
    WARN = "warn"  # works, but less well or not for everything
    FAIL = "fail"  # edgephi cannot run here


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, what was found, and what to do where it is not fine."""

    name: str
    status: Status
    found: str
    remedy: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return {"name": self.name, "status": self.status.value, "found": self.found, "remedy": self.remedy}


def run_checks() -> Iterator[Check]:
    """Look at everything, quick things first."""
    from edgephi.profile.machine.probe import probe, probe_live

    facts, live = probe(), probe_live()
    yield check_cpu(facts)
    yield check_cores(facts)
    yield check_threads(facts)
    yield check_memory(facts)
    if live.zones:
        yield check_heat(live)
    if live.throttle.is_under_voltage is not None or live.power.source is not None:
        yield check_power(live)
    checks: tuple[Callable[[], Check], ...] = (
        check_models_disk,
        check_cache_disk,
        check_linker,
        check_tvm,
        check_pocket,
    )
    for check in checks:
        yield check()


def check_cpu(facts: DeviceFacts) -> Check:
    """Is there an instruction-set level for this CPU, and is it a good one?"""
    from edgephi.profile.machine.isa import best_level

    cpu = facts.cpu
    name = " ".join(part for part in (cpu.model, cpu.arch) if part)
    if cpu.isa_level is None:
        try:
            best_level(cpu.features, cpu.arch)
        except EdgephiError as error:
            return Check("CPU", Status.FAIL, name, str(error))
    found = f"{name}, level {cpu.isa_level}"
    if cpu.isa_level in ("armv8.0", "x86-64-v2"):
        return Check("CPU", Status.WARN, found, "no 8-bit dot products here: expect a few times less speed")
    return Check("CPU", Status.OK, found)


def check_cores(facts: DeviceFacts) -> Check:
    """How many cores may be used, and does anything hold them back?"""
    clusters = facts.cpu.clusters
    allowed = len(facts.limits.allowed_cpus) or sum(len(cluster.cpus) for cluster in clusters)
    kinds = ", ".join(
        f"{len(cluster.cpus)} x {cluster.core or 'core'}" + (f" {cluster.max_mhz} MHz" if cluster.max_mhz else "")
        for cluster in clusters
    )
    found = f"{allowed} usable of {kinds}" if kinds else f"{allowed} usable"
    slow = sorted({cluster.governor for cluster in clusters if cluster.governor in SLOW_GOVERNORS})
    if slow:
        remedy = f"frequency governor {slow[0]} keeps clocks low; sudo cpupower frequency-set -g performance"
        return Check("Cores", Status.WARN, found, remedy)
    quota = facts.limits.cpu_cores
    if quota is not None and quota < allowed:
        remedy = f"a quota of {quota:g} cores: auto means at most --threads {max(1, int(quota))}; raise it for more"
        return Check("Cores", Status.WARN, found, remedy)
    return Check("Cores", Status.OK, found)


def check_threads(facts: DeviceFacts) -> Check:
    """Which cores would compute Phi-3-mini, and why those?"""
    from edgephi.profile.machine.threads import choose_threads

    clusters, limits = facts.cpu.clusters, facts.limits
    allowed = limits.allowed_cpus or tuple(cpu for cluster in clusters for cpu in cluster.cpus)
    if not allowed:
        return Check("Threads", Status.WARN, "cores are not known", "mount /proc and /sys")
    plan = choose_threads(clusters, allowed=allowed, quota=limits.cpu_cores, weights_bytes=PHI3_MINI_WEIGHTS_BYTES)
    where = "any CPU" if plan.cpus is None else f"CPUs {', '.join(map(str, plan.cpus))}"
    return Check("Threads", Status.OK, f"{plan.count} for Phi-3-mini on {where}: {plan.reason}")


def check_memory(facts: DeviceFacts) -> Check:
    """Is there room for a model?"""
    memory, limit = facts.memory, facts.limits.memory_bytes
    found = f"{format_bytes(memory.total_bytes)}, {format_bytes(memory.available_bytes)} available"
    if limit is not None:
        found += f", limited to {format_bytes(limit)}"
    known = [count for count in (memory.available_bytes, limit) if count is not None]
    if not known:
        return Check("Memory", Status.WARN, found, "the kernel does not tell; mount /proc")
    usable = min(known)
    if usable < POCKET_MEMORY_BYTES:
        return Check("Memory", Status.FAIL, found, f"free {format_bytes(POCKET_MEMORY_BYTES)} at least")
    if usable < PHI3_MINI_MEMORY_BYTES:
        remedy = f"enough for the pocket model; Phi-3-mini needs about {format_bytes(PHI3_MINI_MEMORY_BYTES)}"
        return Check("Memory", Status.WARN, found, remedy)
    return Check("Memory", Status.OK, found)


def check_heat(live: LiveFacts) -> Check:
    """Is the machine cool enough to keep its speed?"""
    margins = {
        (trip.celsius - zone.celsius, zone.name, zone.celsius, trip.celsius)
        for zone in live.zones
        for trip in zone.trips
        if trip.kind == "passive"
    }
    # Where no trip is told, the hottest zone stands for all.
    hottest = max(live.zones, key=lambda zone: zone.celsius)
    found = f"{hottest.celsius:.0f} °C ({hottest.name})"
    cool = "give it a heat sink or a fan, or a lower --floor; the governor takes fewer requests until it is cooler"
    if live.throttle.is_throttled:
        return Check("Heat", Status.WARN, f"{found}, and heat or voltage slows the cores down now", cool)
    if margins:
        margin, name, celsius, trip_celsius = min(margins)
        found = f"{celsius:.0f} °C ({name}), slowed down from {trip_celsius:.0f} °C"
        if margin < MIN_HEAT_MARGIN_CELSIUS:
            return Check("Heat", Status.WARN, found, cool)
    if live.throttle.was_throttled:
        return Check("Heat", Status.WARN, f"{found}, and the cores were slowed down since the start", cool)
    return Check("Heat", Status.OK, found)


def check_power(live: LiveFacts) -> Check:
    """Does it get enough power, and for how long?"""
    from edgephi.profile.machine.power import PowerSource

    if live.throttle.is_under_voltage:
        remedy = "use the board's own power supply and a short cable; until then the cores are held back"
        return Check("Power", Status.WARN, "voltage is too low", remedy)
    if live.power.source is None:
        return Check("Power", Status.OK, "voltage is enough")
    charge = ", ".join(f"{battery.percent} %" for battery in live.power.batteries if battery.percent is not None)
    found = live.power.source.value + (f", charged to {charge}" if charge else "")
    if live.power.source is PowerSource.BATTERY:
        return Check("Power", Status.WARN, found, "many systems lower clocks on battery; plug it in to keep the speed")
    return Check("Power", Status.OK, found)


def check_models_disk() -> Check:
    """Can models be installed?"""
    from edgephi.artifact.store import models_dir

    try:
        return _check_disk("Models", models_dir(), PHI3_MINI_DISK_BYTES, "set EDGEPHI_MODELS to another disk")
    except EdgephiError as error:
        return Check("Models", Status.FAIL, "-", str(error))


def check_cache_disk() -> Check:
    """Can compiled models be cached?"""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("edgephi"))
    return _check_disk("Cache", folder, POCKET_DISK_BYTES, "set XDG_CACHE_HOME to another disk")


def check_linker() -> Check:
    """Can models be compiled here?"""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None and importlib.util.find_spec("ziglang") is not None:
        found = "zig (ziglang package)"
    if found is not None:
        return Check("Linker", Status.OK, found)
    remedy = "models compiled elsewhere run; to compile here: apt install gcc, or pip install edgephi[zig]"
    return Check("Linker", Status.WARN, "none", remedy)


def check_tvm() -> Check:
    """Does the runtime load?"""
    try:
        import edgephi.runtime.tvm_backend  # noqa: F401 - loading it is the check
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Check(
            "TVM", Status.FAIL, lines[0], "pip install --force-reinstall apache-tvm; musl systems have no wheel"
        )
    from edgephi.cli.version import library_versions

    return Check("TVM", Status.OK, f"runtime {library_versions()['apache-tvm']} loads")


def check_pocket() -> Check:
    """Is the model inside the package there and compiled for this machine?"""
    from edgephi.cli.compose import resolve_model
    from edgephi.runtime.bundles import current_bundle, host_options

    try:
        path = resolve_model("pocket").path
        found = current_bundle(path, host_options())
    except EdgephiError as error:
        return Check("Pocket", Status.FAIL, "-", str(error))
    if found is None:
        return Check("Pocket", Status.WARN, "not compiled yet", "the first `edgephi run` does it in some seconds")
    folder, bundle = found
    return Check("Pocket", Status.OK, f"compiled for {bundle.level} in {folder}")


def _check_disk(name: str, folder: Path, wanted_bytes: int, elsewhere: str) -> Check:
    # The folder is made on first use; until then its nearest parent stands for it.
    present = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(present).free
    found = f"{folder}, {format_bytes(free)} free"
    if not os.access(present, os.W_OK):
        return Check(name, Status.WARN, found, f"it cannot be written; {elsewhere}")
    if free < wanted_bytes:
        return Check(name, Status.WARN, found, f"less than {format_bytes(wanted_bytes)}; free some or {elsewhere}")
    return Check(name, Status.OK, found)
