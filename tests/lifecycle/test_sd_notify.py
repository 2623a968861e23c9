"""The service manager's socket, played by the tests."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgephi.cli.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Return a manager's socket and its address as NOTIFY_SOCKET would have it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        if request.param == "path":
            receiver.bind(str(tmp_path / "notify"))
            yield receiver, str(tmp_path / "notify")
        else:
            receiver.bind("")  # the kernel picks a free abstract name
            yield receiver, "@" + receiver.getsockname()[1:].decode()


def test_fields_arrive_in_one_datagram(manager: tuple[socket.socket, str]) -> None:
    """A file's socket and an abstract one get each field on its own line, control characters made harmless."""
    receiver, address = manager
    Notifier(address).tell(READY=1, STATUS="serving a\nREADY=0")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=serving a READY=0"


def test_the_environment_is_taken_and_removed() -> None:
    """Address and interval come from the manager's variables, which children do not inherit."""
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "1"}
    assert Notifier.from_environment(environment).watchdog_s == 3.0
    assert environment == {"A": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/x"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "relative", "WATCHDOG_USEC": "3000000"},
    ],
)
def test_no_interval_means_no_watchdog(environment: dict[str, str]) -> None:
    """Without a socket, without an interval and with another process's there is no watchdog."""
    assert Notifier.from_environment(environment).watchdog_s is None


@pytest.mark.parametrize("address", [None, "/nowhere/notify", "@no such manager"])
def test_a_manager_that_is_not_there_is_no_error(address: str | None) -> None:
    """Telling a manager that cannot be reached does nothing."""
    Notifier(address).tell(READY=1)


def test_a_manager_that_reads_nothing_does_not_stop_us(manager: tuple[socket.socket, str]) -> None:
    """A full socket costs a moment and not the server."""
    _, address = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        target = f"\0{address[1:]}" if address.startswith("@") else address
        with contextlib.suppress(BlockingIOError):
            while True:
                flood.sendto(b"x", target)
        Notifier(address).tell(READY=1)
