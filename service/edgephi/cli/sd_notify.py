"""
The service manager's notification socket: one datagram of ``NAME=value`` lines for each change of state.

Owns the protocol of sd_notify(3) and nothing of what is told. Without NOTIFY_SOCKET, nothing is told to nobody.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

SEND_TIMEOUT_S = 0.5


class Notifier:
    """
    Tells the service manager how this process is. Any thread; never raises for a manager that cannot be reached.

    Args:
        address: Path of the socket; one that begins with ``@`` is in Linux's abstract namespace. None tells nobody.
        watchdog_s: How long the manager waits between two signs of life before it ends the process; None for ever.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s if address is not None else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Take what the manager left in the environment, and remove it there: children are not who it watches."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", None)
        interval_us, pid = variables.pop("WATCHDOG_USEC", ""), variables.pop("WATCHDOG_PID", "")
        is_meant = pid in ("", str(os.getpid())) and interval_us.isdecimal() and int(interval_us) > 0
        is_socket = address is not None and address[:1] in ("/", "@") and len(address) > 1
        return cls(address if is_socket else None, int(interval_us) / 1e6 if is_meant else None)

    def tell(self, **fields: str | int) -> None:
        """Send fields such as ``READY=1``; a text's control characters become spaces."""
        if self._address is None:
            return
        lines = [f"{name}={_one_line(str(value))}" for name, value in fields.items()]
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            try:
                sender.sendto("\n".join(lines).encode(), address)
            except OSError:  # a manager that restarts; it asks again by its watchdog
                return


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
