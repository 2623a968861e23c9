"""Which linker is used, and what happens without one or when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgephi.artifact.bundle import BundleOptions
from edgephi.compiler.kernels.embedding import take_rows
from edgephi.compiler.link import link_library, linker_command
from edgephi.compiler.pipeline import compile_model
from edgephi.errors import CompileFailed
from edgephi.profile.machine.isa import ISA_LEVELS, host_arch

Build = Callable[..., Any]


@pytest.fixture
def no_linkers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder as the whole PATH, and no ziglang to import; returns the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    return folder


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_without_a_linker_the_message_says_what_to_install(no_linkers: Path) -> None:
    """For this machine gcc or zig is advised, for another architecture zig."""
    with pytest.raises(CompileFailed, match=r"apt install gcc.*edgephi\[zig\]"):
        linker_command("x86_64", "x86_64")
    with pytest.raises(CompileFailed, match=r"aarch64 on x86_64 needs zig.*edgephi\[zig\]"):
        linker_command("aarch64", "x86_64")


def test_the_system_compiler_links_for_this_machine_only(no_linkers: Path) -> None:
    """A compiler in PATH is used for its own architecture and never for another."""
    cc = _script(no_linkers / "cc", "exit 0")
    assert linker_command("aarch64", "aarch64") == [str(cc)]
    with pytest.raises(CompileFailed, match="needs zig"):
        linker_command("x86_64", "aarch64")


def test_zig_links_for_the_oldest_glibc_we_promise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_linkers: Path
) -> None:
    """Zig is told the architecture and glibc 2.28, which Debian 10 and everything newer has."""
    monkeypatch.delitem(sys.modules, "ziglang")
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    command = linker_command("aarch64", "x86_64")
    assert command == [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28"]


def test_without_a_linker_nothing_is_begun(no_linkers: Path, tmp_path: Path) -> None:
    """Compiling for another architecture without zig fails before the model is even read, and leaves nothing."""
    level = next(level.name for level in ISA_LEVELS.values() if level.arch != host_arch())
    with pytest.raises(CompileFailed, match=r"needs zig: pip install 'edgephi\[zig\]'"):
        compile_model(tmp_path / "no-model", tmp_path / "build" / level, BundleOptions(level=level))
    assert not (tmp_path / "build").exists()


@pytest.mark.tvm
def test_a_failing_linker_is_quoted(no_linkers: Path, tmp_path: Path, build: Build) -> None:
    """The error names the command, its status and what it printed."""
    _script(no_linkers / "cc", "echo 'no space left' >&2; exit 3")
    module = build("x86-64-v2", {"take": take_rows(32)})
    with pytest.raises(CompileFailed, match="bin/cc failed with status 3: no space left"):
        link_library(module, tmp_path / "out.so", arch=host_arch(), host_arch=host_arch())
