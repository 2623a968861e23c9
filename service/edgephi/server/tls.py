"""
The server's certificate and key, and the authorities of its clients, read anew when their files change.

Owns the checks that name the wrong file, and the dates. What a certificate is for and whom it names is checked by
those who connect.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgephi.errors import ConfigError
from edgephi.server.private_files import FileState, state_of
from edgephi.server.settings import ServerSettings

EXPIRY_WARNING = timedelta(days=14)
WARN_AGAIN = timedelta(days=1)
WATCH_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    configuration: grpc.ServerCertificateConfiguration
    begins: datetime
    ends: datetime


class TlsFiles:
    """
    What one server proves itself with; made by it and used until its end, from any thread.

    New connections get what the files hold; connections that are open keep what they were opened with. Files that
    cannot be used, such as a key that is not yet the new certificate's, leave what was loaded before in force.

    Args:
        settings: With ``tls_cert`` and ``tls_key`` set.
        log: structlog logger.
        now: Tells the time.

    Raises:
        ConfigError: If a file cannot be read or is not what it should be, the key is not the certificate's, or the
            certificate has expired.
    """

    def __init__(
        self, settings: ServerSettings, *, log: Any, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        self._cert, self._key, self._client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
        self._log = log
        self._now = now
        self._lock = threading.Lock()
        self._seen = self._states()
        self._loaded = self._load()
        self._offered = self._loaded
        self._retry_at: datetime | None = None
        self._warned_at: datetime | None = None
        self._check_new(self._loaded, in_force=None)

    @property
    def expiry_time(self) -> float:
        """When the first of the certificates in force expires, in seconds since 1970; a gauge for alarms."""
        return self._loaded.ends.timestamp()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a port listens with; each new connection gets what is in force then. Logs what looks wrong."""
        if self._loaded.begins > self._now():
            # The clock is more often wrong than the certificate, and those who connect judge by their own.
            self._log.warning("tls.not_yet_valid", reason=self._not_yet(self._loaded))
        if self._key.stat().st_mode & 0o077:
            self._log.warning("tls.key_readable", path=str(self._key), remedy=f"chmod 600 {self._key}")
        self.refresh()
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._fetch,  # type: ignore[arg-type]  # the stubs forget that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def refresh(self) -> None:
        """Read files that have changed, and warn when the certificates expire soon. Never raises."""
        with self._lock:
            now, states = self._now(), self._states()
            is_due = self._retry_at is not None and now >= self._retry_at
            if states != self._seen or is_due:
                self._seen, self._retry_at = states, None
                self._replace()
            self._warn_of_expiry(now)

    async def watch(self) -> None:
        """Call :meth:`refresh` every minute, so that a rotation that fails is logged also when nobody connects."""
        while True:
            await asyncio.sleep(WATCH_S)
            await asyncio.to_thread(self.refresh)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is new since the last connection; called by gRPC on a thread of its own for each of them."""
        self.refresh()
        with self._lock:
            if self._offered is self._loaded:
                return None
            self._offered = self._loaded
            return self._offered.configuration

    def _replace(self) -> None:
        try:
            loaded = self._load()
            self._check_new(loaded, in_force=self._loaded)
        except ConfigError as error:
            self._log.warning("tls.rotation_refused", reason=str(error), in_force_until=_text(self._loaded.ends))
        else:
            self._loaded = loaded
            self._log.info("tls.rotated", valid_from=_text(loaded.begins), valid_until=_text(loaded.ends))

    def _check_new(self, new: _Loaded, *, in_force: _Loaded | None) -> None:
        now = self._now()
        if new.ends <= now:
            raise ConfigError(
                f"tls_cert {self._cert} or an authority expired at {_text(new.ends)} and this machine's clock says "
                f"{_text(now)}; renew it (`edgephi cert issue --server`), or set the clock"
            )
        if in_force is not None and new.begins > now and in_force.begins <= now < in_force.ends:
            self._retry_at = new.begins
            raise ConfigError(self._not_yet(new))

    def _warn_of_expiry(self, now: datetime) -> None:
        ends = self._loaded.ends
        if ends - now > EXPIRY_WARNING or (self._warned_at is not None and now - self._warned_at < WARN_AGAIN):
            return
        self._warned_at = now
        self._log.warning(
            "tls.expires_soon",
            valid_until=_text(ends),
            days_left=max(0, (ends - now).days),
            remedy="edgephi cert issue --server; no restart is needed",
        )

    def _not_yet(self, loaded: _Loaded) -> str:
        return (
            f"tls_cert {self._cert} is valid from {_text(loaded.begins)} and this machine's clock says "
            f"{_text(self._now())}; set the clock"
        )

    def _states(self) -> tuple[FileState, ...]:
        files = (self._cert, self._key, self._client_ca)
        return tuple(None if file is None else state_of(file) for file in files)

    def _load(self) -> _Loaded:
        chain = _read("tls_cert", self._cert)
        key = _read("tls_key", self._key)
        certificates = _certificates("tls_cert", self._cert, chain)
        _check_key(self._cert, self._key, certificates[0], key)
        _check_purpose(self._cert, certificates[0])
        begins = max(certificate.not_valid_before_utc for certificate in certificates)
        ends = min(certificate.not_valid_after_utc for certificate in certificates)
        authorities: bytes | None = None
        if self._client_ca is not None:
            authorities = _read("tls_client_ca", self._client_ca)
            # An old authority may stay beside its successor; one that is valid is enough.
            last = max(ca.not_valid_after_utc for ca in _certificates("tls_client_ca", self._client_ca, authorities))
            ends = min(ends, last)
        configuration = grpc.ssl_server_certificate_configuration([(key, chain)], authorities)
        return _Loaded(configuration=configuration, begins=begins, ends=ends)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read ({error.strerror})") from error


def _certificates(name: str, path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"{name} {path} holds no certificate in PEM, or a damaged one; make it anew") from error


def _check_key(cert: Path, path: Path, certificate: x509.Certificate, data: bytes) -> None:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"tls_key {path} is encrypted; give the unencrypted key, readable by its owner only"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"tls_key {path} is not a private key in PEM, or a damaged one; make it anew") from error
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"tls_key {path} is not the key of tls_cert {cert}; give the two that belong together")


def _check_purpose(path: Path, certificate: x509.Certificate) -> None:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in purposes:
        raise ConfigError(f"tls_cert {path} is a client's certificate; give the server's")


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
