"""
One engine process, from its start to its end.

Owns the child and the front's end of the channel. The child inherits its end as an open descriptor, so nothing in the
file system names the connection and nobody else can reach it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from edgephi.errors import EngineFailed
from edgephi.isolation.channel import Channel

_END_S = 10.0  # a killed process goes at once, unless it waits for a disk


class EngineProcess:
    """
    A running engine process. :meth:`kill` ends it; whoever started it calls that.

    Start it on a thread that lives longer than it: the kernel ends the child with the thread that started it.

    Args:
        command: Program and arguments; the number of the channel's descriptor is appended.

    Raises:
        EngineFailed: If the program cannot be started.

    Attributes:
        channel: The connection to it.
        pid: Its process id.
    """

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this program's own interpreter and module
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # standard output is for what the front prints
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # so that a terminal's signals do not reach it, and ours reach its compiler
                )
            except OSError as error:
                ours.close()
                raise EngineFailed(f"the engine process cannot be started: {error}") from error
        self.channel = Channel(ours)
        self.pid = self._process.pid

    def kill(self) -> str:
        """End it and whatever it has started, at once, if it has not ended; return how it ended, for people."""
        self.signal(signal.SIGKILL)
        return self.wait(_END_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and whatever it has started."""
        if self._process.returncode is not None:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> str:
        """Wait until it has ended, at most ``timeout_s`` seconds; return how, for people. Closes the channel."""
        self.channel.close()
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"has not ended {timeout_s:g} s after it was killed"
        return _described(status)


def _described(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"
