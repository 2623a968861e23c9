"""
What is told of a server to those who watch it: counters, sensors and traces, put together.

Owns the page and the one reading of the sensors that all share. Logs are structlog's; what is measured is measured
elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from edgephi.engine.health import EngineHealth
from edgephi.engine.stats import EngineStats
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.machine.process import ProcessMemory, read_process_memory
from edgephi.profile.plan import Plan
from edgephi.server.governor import GovernorTask
from edgephi.server.lifecycle import Lifecycle, ServerState
from edgephi.server.metrics import Metrics
from edgephi.server.metrics_page import MetricsPage
from edgephi.server.sensors import Sensors
from edgephi.server.server_rows import EngineReading, GovernedReading, ServerReading
from edgephi.server.settings import ServerSettings
from edgephi.server.tls import TlsFiles
from edgephi.server.tracing import Tracing
from edgephi.server.verification import VerificationTask


class Observability:
    """
    Lives as long as its server, which opens the page with :meth:`open_page` and calls :meth:`close`.

    Args:
        settings: Of the server.
        model_id: The served model.
        version: Of this package.
        plan: The plan in force.
        stats: The engine's counters; quick, any thread.
        health: How the engine is; the same.
        probe_live: Reads how the machine is doing; may take a moment.
        registry: Where metrics are registered.
        log: structlog logger.

    Raises:
        ConfigError: If traces are wanted and what sends them is not installed.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        model_id: str,
        version: str,
        plan: Plan,
        stats: Callable[[], EngineStats],
        health: Callable[[], EngineHealth],
        probe_live: Callable[[], LiveFacts],
        registry: CollectorRegistry,
        log: Any,
    ) -> None:
        self._settings = settings
        self._health = health
        self._page: MetricsPage | None = None
        self._sensors = Sensors(probe_live)
        self.metrics = Metrics(registry, model=model_id)
        self.metrics.watch_engine(lambda: EngineReading(stats=stats(), health=health()))
        self.metrics.watch_plan(plan)
        self.metrics.watch_device(self._sensors.read_soon)
        endpoint = settings.otlp_endpoint
        self.tracing = None if endpoint is None else Tracing(endpoint, model=model_id, version=version, log=log)

    @property
    def page_port(self) -> int | None:
        """The TCP port of the metrics page; None without one."""
        return None if self._page is None else self._page.port

    def probe_live(self) -> LiveFacts:
        """Return how the machine is doing, at most a second old, peaks of both processes added up. May wait."""
        peaks = [process.peak_bytes for process in self._processes().values() if process.peak_bytes is not None]
        return dataclasses.replace(self._sensors.read(), peak_resident_bytes=sum(peaks) or None)

    def watch_server(self, lifecycle: Lifecycle, tls: TlsFiles | None) -> None:
        """Report what the server is doing."""
        self.metrics.watch_server(
            lambda: ServerReading(
                is_ready=lifecycle.state is ServerState.READY,
                num_answers=lifecycle.num_active,
                certificate_expiry_s=None if tls is None else tls.expiry_time,
                processes=self._processes(),
            )
        )

    def watch_governed(self, governor: GovernorTask, verification: VerificationTask) -> None:
        """Report what is taken on at present, and predictions beside measurements."""
        self.metrics.watch_governed(lambda: GovernedReading(governor=governor.state, finding=verification.finding))

    def open_page(self) -> None:
        """
        Serve the metrics page, if one is wanted.

        Raises:
            ConfigError: If its address cannot be listened on.
        """
        if self._settings.metrics_port is not None:
            self._page = MetricsPage(
                self.metrics.registry, host=self._settings.metrics_host, port=self._settings.metrics_port
            )

    def close(self) -> None:
        """Close the page and send the last spans; may wait for a collector, not for long."""
        if self._page is not None:
            self._page.close()
        if self.tracing is not None:
            self.tracing.close()

    def _processes(self) -> dict[str, ProcessMemory]:
        processes = {"front": read_process_memory(None)}
        engine_id = self._health().process_id
        if engine_id is not None:
            processes["engine"] = read_process_memory(engine_id)
        return processes
