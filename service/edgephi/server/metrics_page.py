"""The page that Prometheus reads: plain HTTP, on loopback unless told otherwise."""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from edgephi.errors import ConfigError


class MetricsPage:
    """
    One page, on a thread of its own from construction to :meth:`close`.

    Each request has a thread too, so a sensor that is slow to answer keeps nobody waiting but who asked.

    Raises:
        ConfigError: If the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        try:
            self._server: WSGIServer
            self._thread: threading.Thread
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"metrics address {host}:{port} cannot be listened on ({error.strerror}); choose another metrics_port"
            ) from error

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening and join the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
