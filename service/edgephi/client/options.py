"""
How a channel to a server is opened: credentials, keepalive, retries.

Owns the client's service configuration. Retries are gRPC's own: it obeys the delay a busy server asks for, and never
repeats a call of which anything was received.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from edgephi.errors import ConfigError
from edgephi.v1 import device_service_pb2, generation_service_pb2, model_service_pb2

DEFAULT_TARGET = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """
    Files in PEM for an encrypted connection.

    Attributes:
        ca: Authorities that may have signed the server's certificate; None trusts those gRPC ships with.
        cert: This client's certificate chain, for servers that ask for one.
        key: Its private key.
        server_name: Name expected in the server's certificate where it differs from the target.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None


def tls_options(
    tls: TlsOptions | None, *, ca: Path | str | None, cert: Path | str | None, key: Path | str | None
) -> TlsOptions | None:
    """
    Return the files of a connection, however they were given.

    Raises:
        ConfigError: If they were given both ways.
    """
    if ca is None and cert is None and key is None:
        return tls
    if tls is not None:
        raise ConfigError("ca, cert and key are short for tls=TlsOptions(...); give either these or that")
    return TlsOptions(
        ca=None if ca is None else Path(ca),
        cert=None if cert is None else Path(cert),
        key=None if key is None else Path(key),
    )


def service_config() -> dict[str, Any]:
    """
    Return the retry policy of all methods.

    No timeout is set, for a long answer on a small board takes minutes; and no health check by the balancer, which
    would hide a server that is loading from the very calls that ask how it is doing.
    """
    modules = (generation_service_pb2, model_service_pb2, device_service_pb2)
    services = [service.full_name for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.5s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    return {
        "methodConfig": [{"name": [{"service": name} for name in services], "retryPolicy": retry}],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        "loadBalancingConfig": [{"round_robin": {}}],
    }


def channel_arguments(tls: TlsOptions | None, *, can_retry: bool) -> list[tuple[str, str | int]]:
    """Return gRPC's options: a ping after 30 s of silence finds a dead link, within what the server allows."""
    arguments: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", int(can_retry)),
        ("grpc.service_config", json.dumps(service_config())),
    ]
    if tls is not None and tls.server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", tls.server_name))
    return arguments


def credentials(tls: TlsOptions | None, token: str | None) -> grpc.ChannelCredentials | None:
    """
    Make the credentials of a channel; None for a plain one.

    Raises:
        ConfigError: If a file cannot be read or is not what it should be, a certificate has no key or another one's, or
            a token would travel unencrypted. The message never holds any of the token.
    """
    if tls is None:
        if token is not None:
            raise ConfigError("a token needs tls=TlsOptions(...): unencrypted, anyone on the network could read it")
        return None
    if (tls.cert is None) != (tls.key is None):
        raise ConfigError("TlsOptions cert and key belong together; give both or neither")
    channel = grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.cert))
    _check(tls)
    if token is None:
        return channel
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the token is empty or has characters that no token has; give exactly what was printed")
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def _check(tls: TlsOptions) -> None:
    """Name the file that gRPC would refuse without a reason at each connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        raise ConfigError(f"TLS file {tls.ca} holds no certificate in PEM, or a damaged one; copy it anew") from error
    try:
        if tls.cert is not None:
            # The empty password keeps an encrypted key from asking for one on the terminal.
            context.load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"TLS files {tls.cert} and {tls.key} are not a certificate in PEM and its unencrypted key; copy both anew"
        ) from error


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS file {path} cannot be read ({error.strerror})") from error
