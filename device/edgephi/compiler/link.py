"""Linking a compiled module into a shared library, with the system's compiler or with zig for another architecture."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import tvm

from edgephi.errors import CompileFailed

# The oldest glibc the library is linked for: that of the runtime's own wheels (manylinux_2_28).
_GLIBC = "2.28"


def linker_command(arch: str, host_arch: str) -> list[str]:
    """
    Return the command that links objects for *arch* on this machine.

    The system's C compiler is used where it links for this architecture, zig (the ``ziglang`` package) otherwise.

    Raises:
        CompileFailed: If neither is there, with what to install.
    """
    if arch == host_arch:
        for name in ("cc", "gcc", "clang"):
            found = shutil.which(name)
            if found:
                return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu.{_GLIBC}"]
    if arch == host_arch:
        raise CompileFailed("no linker found; install gcc (apt install gcc) or zig (pip install 'edgephi[zig]')")
    raise CompileFailed(f"linking for {arch} on {host_arch} needs zig: pip install 'edgephi[zig]'")


def link_library(module: tvm.runtime.Executable, out: Path, *, arch: str, host_arch: str) -> None:
    """
    Write *module* as a shared library.

    Raises:
        CompileFailed: If there is no linker or it failed; the message ends with what it printed.
    """
    command = linker_command(arch, host_arch)

    def link(output: str, objects: list[str], options: list[str] | None = None) -> None:
        run = subprocess.run(  # noqa: S603 - the command is one of the three above
            [*command, "-shared", "-fPIC", "-o", output, *objects, "-lm", *(options or [])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            raise CompileFailed(f"{' '.join(command)} failed with status {run.returncode}: {run.stderr.strip()}")

    link.output_format = "so"  # type: ignore[attr-defined] # how TVM asks a linker for its file suffix
    module.export_library(str(out), fcompile=link)
