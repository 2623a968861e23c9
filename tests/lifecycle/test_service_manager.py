"""A whole process under a service manager that the test plays."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lifecycle.sigterm import is_running

from edgephi.cli.processes import descendants
from edgephi.client import Client

TIMEOUT_S = 60


class Manager:
    """A notification socket and what arrived at it."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(TIMEOUT_S)
        self.seen: list[dict[str, str]] = []

    def wait_for(self, name: str) -> dict[str, str]:
        """Return the next datagram that has a field."""
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            self.seen.append(dict(line.split("=", 1) for line in lines))
            if name in self.seen[-1]:
                return self.seen[-1]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Return a manager that every process started from now on finds, with a watchdog of 0.4 s."""
    found = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", found.address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with found.socket:
        yield found


def test_a_service_is_told_of_from_loading_to_its_end(manager: Manager, serve_process: Any) -> None:
    """The manager hears loading with more time, READY once requests are taken, life, and STOPPING with its time."""
    with serve_process("--grace", "7") as server:
        ready = manager.wait_for("READY")
        assert "EXTEND_TIMEOUT_USEC" in manager.seen[0], "before anything slow begins"
        assert all("READY" not in fields for fields in manager.seen[:-1])
        assert ready["STATUS"] == "serving tiny"
        for _ in range(3):
            assert manager.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
        with Client(server.address) as client:
            assert client.health("readiness")
        server.process.send_signal(signal.SIGTERM)
        stopping = manager.wait_for("STOPPING")
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 7_000_000
        assert server.process.wait(TIMEOUT_S) == 0


def test_a_process_that_hangs_gives_no_sign_of_life(manager: Manager, serve_process: Any) -> None:
    """The negative control: a server that is stopped in its tracks tells nothing until it goes on."""
    with serve_process() as server:
        manager.wait_for("WATCHDOG")
        server.process.send_signal(signal.SIGSTOP)
        manager.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:  # what was on its way
                manager.wait_for("WATCHDOG")
        with pytest.raises(TimeoutError):
            manager.wait_for("WATCHDOG")
        server.process.send_signal(signal.SIGCONT)
        manager.socket.settimeout(TIMEOUT_S)
        manager.wait_for("WATCHDOG")
        assert server.stop() == 0


def test_hangup_is_no_end(serve_process: Any) -> None:
    """Without a terminal SIGHUP reloads: it is logged and the server goes on."""
    with serve_process() as server:
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT_S
        while "server.reloaded" not in server.log():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Client(server.address) as client:
            assert client.health()
        assert server.stop() == 0


@pytest.mark.tvm
def test_a_compiler_is_not_left_behind(manager: Manager, spawn: Any, tiny: Path, tmp_path: Path) -> None:
    """SIGTERM while compiling ends the server with status 0 and its compiler with it; the manager heard of both."""
    model = shutil.copytree(tiny, tmp_path / "fresh", ignore=shutil.ignore_patterns("build"))
    process = spawn("serve", "--port", "0", "--model", model)
    assert any("model.compiling" in line for line in process.stderr)
    while not manager.wait_for("STATUS")["STATUS"].startswith("compiling: "):
        pass
    assert int(manager.seen[-1]["EXTEND_TIMEOUT_USEC"]) > 60_000_000
    below = descendants(process.pid)
    assert below, "a compiler"
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 0
    deadline = time.monotonic() + 1.0  # a compiler that was left alone would take far longer
    while any(map(is_running, below)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, below))
