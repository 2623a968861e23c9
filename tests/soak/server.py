"""
The server under soak, ``edgephi serve`` with two more gauges: ``python -m tests.soak.server [--leak] OPTIONS``.

``soak_tasks`` counts the tasks of the event loop, ``soak_objects`` what Python's collector knows. With ``--leak`` each
health check leaves memory, a descriptor, a thread, a task and its request behind: the negative control.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
from typing import Any
from unittest import mock

from prometheus_client import CollectorRegistry, Gauge

from edgephi.cli.main import cli
from edgephi.server import app
from edgephi.server.health import Health
from edgephi.server.settings import ServerSettings

LEAKED_BYTES = 32 << 10
MAX_THREADS = 50  # a system allows only so many


class Watched(app.Server):
    """The real server, which also tells what it holds."""

    def __init__(self, served: app.Served, settings: ServerSettings) -> None:
        registry = CollectorRegistry()
        super().__init__(served, settings, registry=registry)
        loop = asyncio.get_running_loop()
        tasks = Gauge("soak_tasks", "Tasks of the event loop.", registry=registry)
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        Gauge("soak_objects", "Objects that the collector tracks.", registry=registry).set_function(_num_objects)


class Leak:
    """Keeps something of everything for each call; lives as long as the process."""

    def __init__(self) -> None:
        self._kept: list[object] = []
        self._threads: list[threading.Thread] = []
        self._never = threading.Event()

    def add(self, request: object) -> None:
        """Keep a request and what it is taken to have needed."""
        self._kept += [request, b"x" * LEAKED_BYTES, os.open(os.devnull, os.O_RDONLY)]
        self._kept.append(asyncio.create_task(asyncio.sleep(1e6)))
        if len(self._threads) < MAX_THREADS:
            self._threads.append(threading.Thread(target=self._never.wait, daemon=True))
            self._threads[-1].start()


def main() -> None:
    """Serve as the command does."""
    arguments = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(app, "Server", Watched))
        if "--leak" in arguments:
            arguments.remove("--leak")
            stack.enter_context(mock.patch.object(Health, "Check", _leaking(Leak())))
        cli(["serve", *arguments])


def _leaking(leak: Leak) -> Any:
    well = Health.Check

    async def check(self: Health, request: Any, context: Any) -> Any:
        leak.add(request)
        return await well(self, request, context)

    return check


def _num_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


if __name__ == "__main__":
    main()
