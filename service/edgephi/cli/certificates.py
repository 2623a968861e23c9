"""
A local authority, and the certificates it signs for one server and its clients.

Owns names, purposes and lifetimes. Knows no command line and no connection. Only what a program of this package needs
is in a certificate; there is no revocation, so lifetimes are bounded and a new authority is the way out.
"""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgephi.errors import ConfigError

CA_LIFETIME = timedelta(days=3650)
# Clocks of small boards drift; a certificate that begins in the past is valid at once everywhere.
BACKDATE = timedelta(hours=1)
MAX_NAME_LEN = 64  # of a common name. Source: RFC 5280, ub-common-name
EARLIEST_CLOCK = datetime(2024, 1, 1, tzinfo=UTC)
"""Before this a machine's clock has not been set: boards without a battery start in 1970."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_authority(name: str, *, now: datetime) -> Identity:
    """
    Make an authority that signs servers and clients, and no further authority.

    Raises:
        ConfigError: If the clock has not been set, or the name is too long.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    usage = _key_usage(signs_certificates=True)
    builder = (
        _builder(subject, key, now=now, ends=now + CA_LIFETIME)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Identity(builder.sign(key, hashes.SHA256()), key)


def new_server(authority: Identity, names: Iterable[str], *, now: datetime, lifetime: timedelta) -> Identity:
    """
    Sign a server's certificate.

    Args:
        authority: Signs it.
        names: Host names and IP addresses that clients connect to; the first is also its common name.
        now: When it begins.
        lifetime: How long it is valid, no longer than the authority; its first hour has passed.

    Raises:
        ConfigError: If a name is neither a host name nor an address, or the clock has not been set.
    """
    alternatives = [_alternative(name) for name in names]
    assert alternatives
    extension = x509.SubjectAlternativeName(list(dict.fromkeys(alternatives)))
    subject = _subject(str(alternatives[0].value)[:MAX_NAME_LEN])
    return _leaf(authority, subject, ExtendedKeyUsageOID.SERVER_AUTH, now=now, lifetime=lifetime, names=extension)


def new_client(
    authority: Identity, name: str, *, unit: str | None = None, now: datetime, lifetime: timedelta
) -> Identity:
    """
    Sign a client's certificate.

    Args:
        authority: Signs it.
        name: Who the client is; its common name.
        unit: Organizational unit, which says what it may do, or None.
        now: When it begins.
        lifetime: How long it is valid, no longer than the authority; its first hour has passed.

    Raises:
        ConfigError: If the name is too long or empty, or the clock has not been set.
    """
    return _leaf(authority, _subject(name, unit), ExtendedKeyUsageOID.CLIENT_AUTH, now=now, lifetime=lifetime)


def load_identity(certificate: Path, key: Path) -> Identity:
    """
    Read an authority that :func:`new_authority` made.

    Raises:
        ConfigError: If a file cannot be read or is not what it should be.
    """
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        found = load_certificates(certificate)[0]
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read ({error.strerror}); `edgephi cert init` makes an authority"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{key} is no unencrypted private key in PEM; restore it, or start anew with --force"
        ) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != found.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}; restore the two that belong together")
    return Identity(found, loaded)


def load_certificates(path: Path) -> list[x509.Certificate]:
    """
    Read all certificates of a file.

    Raises:
        ConfigError: If it holds none, or a damaged one.
        OSError: If it cannot be read.
    """
    data = path.read_bytes()
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        kind = "holds a private key, which is not shown" if b"PRIVATE KEY-----" in data else "holds no certificate"
        raise ConfigError(f"{path} {kind}; name a file with certificates in PEM") from error


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the host names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, as other tools print it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def own_names() -> tuple[str, ...]:
    """Return the names and addresses under which other machines and this one may reach it."""
    host = socket.gethostname().split(".", 1)[0] or "localhost"
    names = [host, f"{host}.local", socket.getfqdn(), "localhost", "127.0.0.1", "::1", *own_addresses()]
    return tuple(name for name in dict.fromkeys(names) if _is_name(name))


def own_addresses(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return this machine's addresses, without those that are valid on one link only."""
    found: list[str] = []
    try:
        lines = (proc / "net/fib_trie").read_text().splitlines()
        for address, kind in itertools.pairwise(lines):
            if kind.strip() == "/32 host LOCAL":
                found.append(address.rsplit(" ", 1)[-1])
        for line in (proc / "net/if_inet6").read_text().splitlines():
            found.append(str(ipaddress.IPv6Address(int(line.split()[0], 16))))
    except (OSError, ValueError):
        pass  # not Linux, or hidden from us: what else is known must do
    kept = (ipaddress.ip_address(address) for address in dict.fromkeys(found))
    return tuple(str(address) for address in kept if not (address.is_loopback or address.is_link_local))


def _leaf(
    authority: Identity,
    subject: x509.Name,
    purpose: x509.ObjectIdentifier,
    *,
    now: datetime,
    lifetime: timedelta,
    names: x509.SubjectAlternativeName | None = None,
) -> Identity:
    # From the backdated begin on, so that no more than the lifetime is in the certificate.
    ends = min(now - BACKDATE + lifetime, authority.certificate.not_valid_after_utc)
    if ends <= now:
        raise ConfigError(
            f"the authority expired at {authority.certificate.not_valid_after_utc:%Y-%m-%d}; make a new one with "
            "`edgephi cert init --force`, and give its ca.pem to every client"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(subject, key, now=now, ends=ends)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(identifier, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return Identity(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    if now < EARLIEST_CLOCK:
        raise ConfigError(
            f"this machine's clock says {now:%Y-%m-%d %H:%M:%S UTC}, before {EARLIEST_CLOCK:%Y-%m-%d}; set it first, "
            "or the certificates would have expired when it is right"
        )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str, unit: str | None = None) -> x509.Name:
    if not 1 <= len(name) <= MAX_NAME_LEN or not name.isprintable():
        raise ConfigError(f"name {name!r} is not 1 to {MAX_NAME_LEN} printable characters; choose another")
    parts = [] if unit is None else [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _is_name(name):
        raise ConfigError(f"name {name!r} is neither a host name nor an IP address; leave out port and scheme")
    return x509.DNSName(name)


def _is_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.removeprefix("*.").split(".")
        return len(name) <= 253 and all(
            0 < len(label) <= 63
            and label.isascii()
            and label.replace("-", "").replace("_", "").isalnum()
            and not label.startswith("-")
            for label in labels
        )
    return True


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
