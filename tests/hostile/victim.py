"""
A server in a process of its own, whose memory and open files a test can look at: ``python -m tests.hostile.victim``.

The real server over the fake engine. Each line on standard input is answered with one JSON object on standard output
that says how the process is. ``--without OPTION`` leaves an option of gRPC at its default, for negative controls.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
from pathlib import Path
from unittest import mock

import structlog
from prometheus_client import CollectorRegistry
from tests.hostile.options import with_changes

from edgephi.cli.compose import EngineKind, ServiceOptions, open_service
from edgephi.cli.malloc import give_back_freed_memory
from edgephi.server import app
from edgephi.server.settings import ServerSettings

STARTED = "grpc_server_started_total"


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", nargs="*", default=())
    arguments = parser.parse_args()
    give_back_freed_memory()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

    with (
        mock.patch.object(app, "channel_options", with_changes(dict.fromkeys(arguments.without))),
        open_service(ServiceOptions(engine=EngineKind.FAKE, max_running=4)) as service,
    ):
        asyncio.run(_serve(app.Server, service.served()))


async def _serve(make: type[app.Server], served: app.Served) -> None:
    registry = CollectorRegistry()
    server = make(served, ServerSettings(port=0), registry=registry)
    await server.start()
    await server.wait_ready()
    _answer({"port": server.port})
    while await asyncio.to_thread(sys.stdin.readline):
        _answer(_state(registry))
    await server.stop(0)


def _state(registry: CollectorRegistry) -> dict[str, float]:
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    started = [sample for metric in registry.collect() for sample in metric.samples if sample.name.endswith(STARTED)]
    return {
        "started": sum(sample.value for sample in started),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "rss_bytes": int(status["VmRSS"].split()[0]) << 10,
        "peak_bytes": int(status["VmHWM"].split()[0]) << 10,
        "cpu_s": sum(os.times()[:2]),
    }


def _answer(values: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
