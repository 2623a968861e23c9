"""
Server credentials from PEM files.

Owns the checks that name the wrong file; gRPC itself would only say that it cannot listen.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from edgephi.errors import ConfigError
from edgephi.server.settings import ServerSettings


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials:
    """
    Read the certificate, its key and the authority for clients' certificates.

    Args:
        settings: With ``tls_cert`` and ``tls_key`` set.

    Raises:
        ConfigError: If a file cannot be read or is no certificate, or the key is not the certificate's.
    """
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = _read("tls_cert", settings.tls_cert), _read("tls_key", settings.tls_key)
    try:
        # The empty password keeps an encrypted key from asking for one on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key} are not a certificate in PEM and its "
            f"unencrypted key ({error.reason}); make them anew or convert them with openssl"
        ) from error
    if settings.tls_client_ca is None:
        return grpc.ssl_server_credentials([(key, chain)])
    authorities = _read("tls_client_ca", settings.tls_client_ca)
    try:
        context.load_verify_locations(settings.tls_client_ca)
    except ssl.SSLError as error:
        raise ConfigError(f"tls_client_ca {settings.tls_client_ca} holds no certificate in PEM") from error
    return grpc.ssl_server_credentials([(key, chain)], authorities, require_client_auth=True)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read ({error.strerror})") from error
