"""
What a server proves itself with and knows its callers by.

Owns that all of it is read at once: before a model is loaded, so that a slip costs no minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgephi.server.settings import ServerSettings
from edgephi.server.tls import TlsFiles
from edgephi.server.tokens import TokenStore


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    Of one server; used until its end.

    Attributes:
        tls: Certificates, or None without TLS.
        tokens: Those that are accepted, or None where none is asked for.
    """

    tls: TlsFiles | None
    tokens: TokenStore | None


def open_credentials(settings: ServerSettings, *, log: Any) -> Credentials:
    """
    Read certificates and tokens as the settings name them.

    Raises:
        ConfigError: If one cannot be used; the message names the file and what to do.
    """
    return Credentials(
        tls=TlsFiles(settings, log=log) if settings.has_tls else None,
        tokens=TokenStore(settings.tokens, log=log) if settings.tokens is not None else None,
    )
