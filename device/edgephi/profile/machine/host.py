"""
What this process runs inside: a container, a phone's terminal, a service manager, or nothing special.

Owns the marks by which each is known. They say what to advise, never what the limits are.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from edgephi.profile.machine.kernelfile import is_there, parse_fields, parse_int, read_name, read_text


class HostKind(enum.Enum):
    """What a process runs inside; the innermost that can be told."""

    KUBERNETES = "kubernetes"
    PODMAN = "podman"
    DOCKER = "docker"
    LXC = "lxc"
    CONTAINER = "container"  # one of another kind
    PROOT = "proot"  # a Linux file tree on a phone, without a kernel of its own
    ANDROID = "android"  # Termux and its like
    WSL = "wsl"
    SYSTEMD = "systemd"  # in a unit of it: a service, a scope or a slice
    NONE = "none"


# What container managers write into files made for this; the first word decides.
_MANAGERS: Mapping[str, HostKind] = MappingProxyType(
    {
        "docker": HostKind.DOCKER,
        "podman": HostKind.PODMAN,
        "lxc": HostKind.LXC,
        "lxc-libvirt": HostKind.LXC,
        "proot": HostKind.PROOT,
        "wsl": HostKind.WSL,
    }
)


def read_host_kind(root: Path) -> HostKind:
    """
    Find what this process runs inside.

    Args:
        root: Folder that holds ``proc``, ``run`` and ``etc``; ``/`` on a real machine.
    """
    cgroups = read_text(root / "proc/self/cgroup") or ""
    container = _container(root, cgroups)
    if container is not None:
        return container
    if _is_proot(root):
        return HostKind.PROOT
    if is_there(root / "data/data/com.termux") or is_there(root / "system/build.prop"):
        return HostKind.ANDROID
    if "microsoft" in _release(root):
        return HostKind.WSL
    units = (".service", ".scope", ".slice")
    parts = (part for line in cgroups.splitlines() for part in line.split("/"))
    return HostKind.SYSTEMD if any(part.endswith(units) for part in parts) else HostKind.NONE


def _container(root: Path, cgroups: str) -> HostKind | None:
    secrets = ("run/secrets/kubernetes.io", "var/run/secrets/kubernetes.io")
    if "kubepods" in cgroups or any(is_there(root / path) for path in secrets):
        return HostKind.KUBERNETES
    if is_there(root / "run/.containerenv") or "libpod-" in cgroups:
        return HostKind.PODMAN
    if is_there(root / ".dockerenv") or "/docker/" in cgroups or "/docker-" in cgroups:
        return HostKind.DOCKER
    for path in ("run/systemd/container", "run/host/container-manager"):
        words = (read_name(root / path) or "").split()
        if words:
            return _MANAGERS.get(words[0], HostKind.CONTAINER)
    if "/lxc/" in cgroups or "/lxc.payload" in cgroups:
        return HostKind.LXC
    return None


def _is_proot(root: Path) -> bool:
    """Return whether proot traces this process, or whether its distribution of file trees renamed the kernel."""
    tracer = parse_int(parse_fields(read_text(root / "proc/self/status") or "").get("TracerPid", ""))
    if tracer is not None and tracer > 0 and read_text(root / f"proc/{tracer}/comm") == "proot":
        return True
    return "proot-distro" in _release(root)


def _release(root: Path) -> str:
    texts = (read_text(root / path) or "" for path in ("proc/sys/kernel/osrelease", "proc/version"))
    return " ".join(texts).lower()
