"""
How a server listens and what it allows a connection.

Owns the defaults of the network side and the rule that a network address needs TLS. Knows no model and no engine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgephi.errors import ConfigError

MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """
    Settings of one server; construction checks them.

    Attributes:
        host: Address to listen on; a name or an IP address.
        port: TCP port, 0 to 65535; 0 takes a free one.
        metrics_host: Address of the Prometheus page, which has neither TLS nor a password.
        metrics_port: Its TCP port, 0 takes a free one; None serves no page.
        tls_cert: File with the certificate chain in PEM; None listens without TLS.
        tls_key: File with its private key in PEM.
        tls_client_ca: File with the authorities in PEM one of which must have signed a client's certificate; None
            accepts clients without one.
        insecure_lan: Allow an address other than loopback without TLS. Everyone on the network can then read
            and send requests.
        reflection: Serve the description of the services to tools.
        max_message_bytes: Longest message accepted, at least 1,024.
        max_duration_s: Most seconds for one answer; it then ends with what exists and the reason DEADLINE.
        write_timeout_s: Most seconds that a client may leave a response of a stream untaken; its call then ends.
        max_connections: Most open connections.
        max_streams: Most calls at once on one connection.
        keepalive_s: Silence in seconds after which the server asks a connection whether it is alive.
        keepalive_timeout_s: How long it waits for the reply before it drops the connection and its requests.

    Raises:
        ConfigError: If a value is out of bounds, or a network address has neither TLS nor ``insecure_lan``.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure_lan: bool = False
    reflection: bool = True
    max_message_bytes: int = 1 << 20
    max_duration_s: float = 1800.0
    write_timeout_s: float = 30.0
    max_connections: int = 64
    max_streams: int = 64
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("metrics_port", self.metrics_port or 0)):
            if not 0 <= port <= MAX_PORT:
                raise ConfigError(f"{name} is {port}; must be 0 to {MAX_PORT}")
        for name, value, low in (
            ("max_message_bytes", self.max_message_bytes, 1024),
            ("max_duration_s", self.max_duration_s, 1),
            ("write_timeout_s", self.write_timeout_s, 0.1),
            ("max_connections", self.max_connections, 1),
            ("max_streams", self.max_streams, 1),
            ("keepalive_s", self.keepalive_s, 1),
            ("keepalive_timeout_s", self.keepalive_timeout_s, 1),
        ):
            if not value >= low:
                raise ConfigError(f"{name} is {value}; must be at least {low}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key: client certificates are checked within TLS")
        if not (self.has_tls or self.insecure_lan or is_loopback(self.host)):
            raise ConfigError(
                f"host {self.host!r} is reachable from the network and there is no TLS; give tls_cert and tls_key, "
                "listen on 127.0.0.1, or set insecure_lan to accept that anyone on the network can read and send"
            )

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_cert is not None

    @property
    def address(self) -> str:
        """Host and port as gRPC wants them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def channel_arguments(self) -> Sequence[tuple[str, int]]:
        """
        Return gRPC's options for the server.

        Its defaults would let two servers share a port without a word, cut clients that ping through a long
        prefill, keep the slot of a client that vanished, and bound neither connections nor calls.
        """
        return (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.server_handshake_timeout_ms", 5_000),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than ``localhost`` count as the network's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
