"""
An arm64 Debian system in ``build/arm64-root`` with edgephi's wheel in it, run by QEMU's user-mode emulation.

``python -m tests.arm64.root`` makes it or brings it up to date. Owns the steps that make it, each of which is skipped
when its result is there, and how a command is run in it. Does not know what the tests do there.

Every command gets a mount namespace of its own (``enter.sh``), so that nothing stays mounted below ``build`` and
`make clean` is safe, also after a test was killed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "build" / "arm64-root"
SHARED = ROOT / "srv"
"""Files for both sides; ``/srv`` inside."""
PYTHON = "/opt/edgephi/bin/python"
"""Python of the virtual environment, as seen inside."""

CPUS: Mapping[str, str] = MappingProxyType(
    {
        "armv8.0": "cortex-a72",
        "armv8.2-dotprod": "cortex-a76",
        # QEMU 7.2 knows no core of v8.6 or v9 by name; its "max" has all they have. SVE is off, as on phones. Its own
        # pointer authentication is many times faster to emulate than the architecture's.
        "armv8.6-i8mm": "max,sve=off,pauth-impdef=on",
    }
)
"""For each level a CPU, by QEMU's name, that has what the level needs."""

_SUITE = "bookworm"
_PYTHON_VERSION = "3.11"  # of that suite
_VENV = ROOT / "opt" / "edgephi"
# pip takes platform tags literally, so the tags of wheels for an older glibc are named as well.
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_PACKAGES: Mapping[str, str] = MappingProxyType(
    {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "unshare": "util-linux"}
)


class RootUnavailable(Exception):
    """The arm64 system cannot be made or entered here; the message says what to do."""


def command(*arguments: str | Path, root: Path = ROOT) -> list[str]:
    """Return the command that runs *arguments* in the root, or here but able to run arm64 programs if *root* is /."""
    enter = Path(__file__).with_name("enter.sh")
    return [str(part) for part in ("unshare", "--mount", "--", "sh", enter, root, *arguments)]


def environment(cpu: str | None = None) -> dict[str, str]:
    """Return the whole environment of a command in the root, with *cpu* as QEMU's name of the processor."""
    names = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "TVM_NUM_THREADS": "2"}
    return names if cpu is None else {**names, "QEMU_CPU": cpu}


def prepare() -> None:
    """
    Make the root, or what is missing or out of date in it.

    Raises:
        RootUnavailable: If this machine cannot, or a step failed.
    """
    _check_machine()
    if not ROOT.is_dir():
        _say(f"Debian {_SUITE} for arm64 into {ROOT.relative_to(REPOSITORY)} (a few minutes)")
        _debootstrap()
    if not (_VENV / "pyvenv.cfg").is_file():
        _run(*command("python3", "-m", "venv", "--without-pip", "/opt/edgephi"), env=environment())
    _install_dependencies()
    _install_edgephi()


def _check_machine() -> None:
    if platform.machine() == "aarch64":
        raise RootUnavailable("this machine is aarch64 itself; `make test` runs its kernels without emulation")
    if os.geteuid() != 0:
        raise RootUnavailable("making and entering a root needs root; try: sudo make test-arm64")
    missing = sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})
    if missing and shutil.which("apt-get") is not None:
        _say(f"installing {', '.join(missing)}")
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)
    elif missing:
        raise RootUnavailable(f"install {', '.join(missing)} first (these are Debian's names)")
    if subprocess.run(command("true", root=Path("/")), check=False).returncode:
        raise RootUnavailable("mounting is not permitted here; in a container, run it as a privileged one")


def _debootstrap() -> None:
    """Make the system beside its place and move it there when it is whole."""
    ROOT.parent.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".arm64-root-", dir=ROOT.parent))
    try:
        made = work / "root"
        options = ("--arch=arm64", "--variant=minbase", "--include=python3,python3-venv")
        _run(*command("debootstrap", *options, _SUITE, made, root=Path("/")))
        shutil.rmtree(made / "var" / "cache" / "apt" / "archives", ignore_errors=True)
        made.rename(ROOT)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _install_dependencies() -> None:
    """
    Install aarch64 wheels of the dependencies, from outside: pip is slow under emulation.

    The versions are those of this environment: a bundle is for the version of TVM that compiled it.
    """
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split("[^A-Za-z0-9._-]", requirement)[0] for requirement in wanted]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    stamp = _VENV / "dependencies"
    if stamp.is_file() and stamp.read_text().split() == pins:
        return
    _say("aarch64 wheels of the dependencies")
    shutil.rmtree(_site_packages(), ignore_errors=True)
    _pip_install(*pins)
    stamp.write_text("\n".join(pins))


def _install_edgephi() -> None:
    """Build the wheel of the sources as they are and install it over the last one."""
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY)
        (wheel,) = Path(folder).glob("edgephi-*.whl")
        for old in (*_site_packages().glob("edgephi*"), _site_packages() / "bin"):
            shutil.rmtree(old, ignore_errors=True)
        _pip_install("--no-deps", wheel)


def _pip_install(*arguments: str | Path) -> None:
    platforms = [option for tag in _PLATFORMS for option in ("--platform", tag)]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--only-binary=:all:", "--python-version", _PYTHON_VERSION, *platforms, "--target", _site_packages(),
        *arguments,
    )  # fmt: skip


def _site_packages() -> Path:
    return _VENV / "lib" / f"python{_PYTHON_VERSION}" / "site-packages"


def _run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run([str(part) for part in arguments], env=env, check=False)
    if done.returncode:
        raise RootUnavailable(f"{' '.join(map(str, arguments))} ended with status {done.returncode}")


def _say(text: str) -> None:
    print(f"arm64-root: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        prepare()
    except RootUnavailable as error:
        sys.exit(f"arm64-root: {error}")
