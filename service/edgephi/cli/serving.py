"""
A server from its start to its end: signals, the service manager, and the engine that must stay alive.

Owns the order of these. What is served and how is decided by the command and passed in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from edgephi.cli.processes import end_now
from edgephi.cli.watchdog import Watchdog
from edgephi.errors import EngineFailed

if TYPE_CHECKING:
    from edgephi.cli.compose import LocalService
    from edgephi.cli.sd_notify import Notifier
    from edgephi.server.app import Server
    from edgephi.server.settings import ServerSettings

ENGINE_CHECK_S = 1.0
CLOSE_S = 0.2
LOADING_S = 300.0
"""Seconds that a service manager is asked to wait for the next sign of loading; a board may link for minutes."""

_STOPPING_S = 10.0  # beyond the grace, on a machine that is busy


def end_on_signals_while_loading() -> None:
    """From now on SIGTERM ends the process and its children at once, with exit status 0; SIGHUP does nothing."""
    # As process 1 of a container Python would ignore SIGTERM until the server handles it itself.
    signal.signal(signal.SIGTERM, _end_loading)
    if not _has_terminal():
        signal.signal(signal.SIGHUP, _do_nothing)


def run_server(
    local: LocalService,
    settings: ServerSettings,
    *,
    grace_s: float,
    announce: Callable[[Server], None],
    notifier: Notifier,
) -> None:
    """
    Serve until a signal, then let running answers finish, and close the engine.

    Args:
        local: What is served.
        settings: How.
        grace_s: How long running answers may take after the signal, in seconds.
        announce: Called once requests are taken.
        notifier: The service manager.

    Raises:
        EngineFailed: If the engine ended by itself, so that a service manager starts a new process.
        ConfigError: If an address cannot be listened on.
    """
    asyncio.run(_serve(local, settings, grace_s, announce, notifier))
    # asyncio has put the default actions back.
    signal.signal(signal.SIGTERM, _end_closing)
    try:
        local.loop.close(CLOSE_S)
    except EngineFailed:
        # A forward that takes long, or is stuck. Nobody waits for it: every client has been told.
        end_now(0)


async def _serve(
    local: LocalService,
    settings: ServerSettings,
    grace_s: float,
    announce: Callable[[Server], None],
    notifier: Notifier,
) -> None:
    from edgephi.server.app import Server
    from edgephi.server.lifecycle import ServerState

    server = Server(local.served(), settings)
    asked_to_stop = _stop_on_signals(server)
    watchdog = asyncio.create_task(Watchdog(notifier, local.loop).run())
    try:
        await server.start()
        ready = asyncio.create_task(server.wait_ready())
        await asyncio.wait({ready, asked_to_stop}, return_when=asyncio.FIRST_COMPLETED)
        if asked_to_stop.done():
            ready.cancel()
            return
        ready.result()  # raises when the model could not produce its first token
        announce(server)
        notifier.tell(READY=1, STATUS=f"serving {local.info.display_name}")
        state = server.state
        while not asked_to_stop.done():
            await asyncio.wait({asked_to_stop}, timeout=ENGINE_CHECK_S)
            # Also where a later engine lives but gave no first token: it would never be asked again.
            if not local.loop.is_alive or server.state is ServerState.FAILED:
                raise EngineFailed("the engine ended by itself; the log says why")
            if server.state is not state:
                state = server.state
                notifier.tell(STATUS=f"{state.value}: {local.info.display_name}")
    finally:
        remaining_us = round((grace_s + _STOPPING_S) * 1e6)
        notifier.tell(STOPPING=1, STATUS="running answers may finish", EXTEND_TIMEOUT_USEC=remaining_us)
        await server.stop(grace_s)
        watchdog.cancel()


def _stop_on_signals(server: Server) -> asyncio.Future[None]:
    """Return a future that SIGTERM or SIGINT resolves; a second one ends the process at once. SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if not asked.done():
            asked.set_result(None)
        else:
            # The engine may be in a forward that takes seconds; whoever asks twice does not want to wait for it.
            end_now(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if _has_terminal():
        loop.add_signal_handler(signal.SIGHUP, on_signal, signal.SIGHUP)
    else:
        loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, server.reload)
    return asked


def _has_terminal() -> bool:
    """Return whether SIGHUP would mean that a person's terminal has gone."""
    return sys.stdin is not None and not sys.stdin.closed and os.isatty(sys.stdin.fileno())


def _end_loading(_number: int, _frame: FrameType | None) -> None:
    end_now(0)


def _end_closing(number: int, _frame: FrameType | None) -> None:
    end_now(128 + number)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    return
