"""Engine processes of their own, whose fake backend harms itself on demand."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.isolation.engine_program import Options
from tests.isolation.rig import PATIENT, PROGRAM, is_running

from edgephi.cli.processes import descendants
from edgephi.isolation.liveness import LivenessSettings
from edgephi.isolation.quarantine import HOLD_S, Quarantine
from edgephi.isolation.remote_loop import RemoteLoop

Start = Callable[..., RemoteLoop]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts an engine process with options of the program; closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def run(
            *, liveness: LivenessSettings = PATIENT, hold_s: float = HOLD_S, waits: bool = True, **options: Any
        ) -> RemoteLoop:
            command = (sys.executable, str(PROGRAM))
            loop = RemoteLoop(
                command,
                msgspec.msgpack.encode(Options(**options)),
                liveness=liveness,
                quarantine=Quarantine(hold_s=hold_s),
            )
            stack.callback(loop.close)
            if waits:
                assert loop.wait_loaded() == b"facts of a test"
            return loop

        yield run


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fail where a test leaves an engine process behind."""
    yield
    children = [pid for pid in descendants(os.getpid()) if is_running(pid) and b"engine_program" in _command(pid)]
    assert children == []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
