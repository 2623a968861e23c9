"""
How a server listens and what it allows a connection.

Owns the defaults of the network side and the rule that a network address needs TLS and known callers. Knows no model
and no engine.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from edgephi.errors import ConfigError

MAX_PORT = 65535
_ENDPOINT = re.compile(r"https?://[^\s/@]+:[0-9]{1,5}/?")


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
        tokens: File of `edgephi token`; every call but those for health must then come with one of its tokens, or from
            a client with a certificate. None asks for no token.
        insecure_lan: Allow an address other than loopback without TLS, or without asking who calls. Everyone on the
            network can then read or send requests.
        otlp_endpoint: Where traces go, ``http://host:port`` or ``https`` for TLS; a collector of OTLP over gRPC. None
            makes none.
        reflection: Serve the description of the services to tools.
        max_message_bytes: Longest message accepted, at least 1,024.
        max_duration_s: Most seconds for one answer; it then ends with what exists and the reason DEADLINE.
        write_timeout_s: Most seconds that a client may leave a response of a stream untaken; its call then ends.
        max_connections: Most open connections; None for 64, or 16 on a machine of less than 2 GiB.
        max_streams: Most calls at once on one connection; gRPC's own clients let further ones wait.
        handshake_timeout_s: How long a new connection may take until it is one of HTTP/2, and then to acknowledge the
            server's settings.
        connection_idle_s: How long a connection may be open without a call.
        connection_age_s: How long a connection may be open, give or take a tenth; its calls then have
            ``max_duration_s`` to end. Clients connect anew by themselves.
        keepalive_s: Silence in seconds after which the server asks a connection whether it is alive.
        keepalive_timeout_s: How long it waits for the reply before it drops the connection and its requests.

    Raises:
        ConfigError: If a value is out of bounds, or a network address has neither ``insecure_lan`` nor TLS with tokens
            or client certificates.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    insecure_lan: bool = False
    otlp_endpoint: str | None = None
    reflection: bool = True
    max_message_bytes: int = 256 << 10
    max_duration_s: float = 1800.0
    write_timeout_s: float = 30.0
    max_connections: int | None = None
    max_streams: int = 16
    handshake_timeout_s: float = 5.0
    connection_idle_s: float = 300.0
    connection_age_s: float = 3600.0
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
            ("max_connections", 1 if self.max_connections is None else self.max_connections, 1),
            ("max_streams", self.max_streams, 1),
            ("handshake_timeout_s", self.handshake_timeout_s, 0.1),
            ("connection_idle_s", self.connection_idle_s, 1),
            ("connection_age_s", self.connection_age_s, 1),
            ("keepalive_s", self.keepalive_s, 1),
            ("keepalive_timeout_s", self.keepalive_timeout_s, 1),
        ):
            if not value >= low:
                raise ConfigError(f"{name} is {value}; must be at least {low}")
        if self.otlp_endpoint is not None and not _ENDPOINT.fullmatch(self.otlp_endpoint):
            raise ConfigError(
                f"otlp_endpoint is {self.otlp_endpoint!r}; must be http://HOST:PORT or https://HOST:PORT of a "
                "collector that takes OTLP over gRPC, usually port 4317"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key: client certificates are checked within TLS")
        if not (self.insecure_lan or is_loopback(self.host)):
            self._require_door()

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.tls_cert is not None

    @property
    def address(self) -> str:
        """Host and port as gRPC wants them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers need a token or a certificate."""
        return self.tokens is not None or self.tls_client_ca is not None

    def _require_door(self) -> None:
        missing: list[str] = []
        if not self.has_tls:
            missing.append("there is no TLS (`edgephi cert init` makes tls_cert and tls_key)")
        if not self.asks_who_calls:
            missing.append(
                "nobody is asked who they are (`edgephi token add NAME` makes tokens, tls_client_ca wants certificates)"
            )
        if missing:
            raise ConfigError(
                f"host {self.host!r} is reachable from the network and {', and '.join(missing)}; give what is missing "
                "(--tls-cert FILE --tls-key FILE --tokens FILE), or listen on 127.0.0.1, or set insecure_lan "
                "(--insecure-lan) to accept that anyone on the network can read and send"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than ``localhost`` count as the network's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
