"""Certificates of a real server: what it refuses to start with, and how they change while it runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgephi.cli.certificates import new_server
from edgephi.client import AsyncClient, Client, ServerUnavailable
from edgephi.errors import ConfigError
from edgephi.server.settings import ServerSettings
from edgephi.server.tls import EXPIRY_WARNING, TlsFiles

NOW = datetime.now(UTC)
ANSWER = "The robot moves to the left and stops at the door."


def _truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:150])
    return path


def _locked_key(pki: Any) -> dict[str, Path]:
    made = new_server(pki.authority, ["localhost"], now=NOW, lifetime=timedelta(days=9))
    locked = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    cert = pki.write("server.pem", made.certificate_pem)
    return {"tls_cert": cert, "tls_key": pki.write("server.key", locked)}


def _clients(pki: Any) -> dict[str, Path]:
    files = pki.client()
    return {"tls_cert": files["cert"], "tls_key": files["key"]}


Make = Callable[[Any], dict[str, Path]]
EXPIRED = {"now": NOW - timedelta(days=30), "lifetime": timedelta(days=20)}

BAD_FILES: dict[str, tuple[Make, str]] = {
    "no certificate": (lambda pki: pki.server() | {"tls_cert": Path("/absent")}, "tls_cert /absent cannot be read"),
    "no key": (lambda pki: pki.server() | {"tls_key": Path("/absent")}, "tls_key /absent cannot be read"),
    "truncated certificate": (
        lambda pki: pki.server() | {"tls_cert": _truncated(pki.server()["tls_cert"])},
        "tls_cert",
    ),
    "truncated key": (lambda pki: pki.server() | {"tls_key": _truncated(pki.server("cut")["tls_key"])}, "tls_key"),
    "swapped key": (lambda pki: pki.server() | {"tls_key": pki.server("other")["tls_key"]}, "is not the key of"),
    "key as certificate": (lambda pki: pki.server() | {"tls_cert": pki.server()["tls_key"]}, "no certificate in PEM"),
    "encrypted key": (_locked_key, "encrypted"),
    "expired": (lambda pki: pki.server(**EXPIRED), r"expired at .* clock says .*edgephi cert issue --server"),
    "client's certificate": (_clients, "is a client's certificate"),
    "no client authority": (lambda pki: pki.server() | {"tls_client_ca": Path("/absent")}, "tls_client_ca /absent"),
    "noise as client authority": (
        lambda pki: pki.server() | {"tls_client_ca": pki.write("noise", b"noise")},
        "tls_client_ca .* holds no certificate",
    ),
}


@pytest.mark.parametrize(("make", "said"), BAD_FILES.values(), ids=BAD_FILES)
async def test_files_that_cannot_be_used_stop_the_start(serve: Any, pki: Any, make: Make, said: str) -> None:
    """Every wrong certificate, key and authority is refused by name before anything listens."""
    with pytest.raises(ConfigError, match=said):
        async with serve(**make(pki)):
            pass
    async with serve(**pki.server(), tls_client_ca=pki.ca):  # the good twin
        pass


class Handshakes:
    """A bare server behind our certificates, at a clock of its own; only its handshakes matter."""

    def __init__(self, settings: ServerSettings, *, now: datetime = NOW) -> None:
        self.lines = structlog.testing.LogCapture()
        log = structlog.wrap_logger(structlog.PrintLogger(), processors=[self.lines])
        self.tls = TlsFiles(settings, log=log, now=lambda: now)
        self._server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(_Healthy(), self._server)
        self.port = self._server.add_secure_port("127.0.0.1:0", self.tls.credentials())

    async def __aenter__(self) -> Handshakes:
        await self._server.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._server.stop(None)


class _Healthy(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # publishes no stubs
    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def _refusal(port: int, **client: Any) -> str:
    """Return why a client cannot connect; fail if it can."""
    async with AsyncClient(f"127.0.0.1:{port}", can_retry=False, timeout_s=10, **client) as asking:
        with pytest.raises(ServerUnavailable) as caught:
            await asking.health()
    assert caught.value.hint is not None
    return str(caught.value)


WRONG_SERVERS: dict[str, tuple[dict[str, Any], datetime, str]] = {
    "expired": (EXPIRED, NOW - timedelta(days=15), "has expired and this machine's clock says"),
    "not yet valid": (
        {"now": NOW + timedelta(days=9)},
        NOW,
        "is not valid yet and this machine's clock says .* set the clock",
    ),
    "wrong name": ({"names": ["robot.local", "192.168.1.9"]}, NOW, "not for the name or address .* --name NAME"),
}


@pytest.mark.parametrize(("changes", "now", "said"), WRONG_SERVERS.values(), ids=WRONG_SERVERS)
async def test_clients_are_told_what_is_wrong_with_a_server(
    pki: Any, changes: dict[str, Any], now: datetime, said: str
) -> None:
    """A certificate that is out of its time or for another name is refused by the client, with what to do."""
    async with Handshakes(ServerSettings(**pki.server(**changes)), now=now) as server:
        with pytest.raises(ServerUnavailable, match=said):
            async with AsyncClient(f"127.0.0.1:{server.port}", ca=pki.ca, can_retry=False) as client:
                await client.health()


async def test_clients_are_told_what_is_wrong_with_a_connection(pki: Any) -> None:
    """A foreign authority, plain text to TLS, and a client certificate that is not accepted have a named cause."""
    settings = ServerSettings(**pki.server(), tls_client_ca=pki.ca)
    other = pki.write("other.pem", pki.other.certificate_pem)
    closed = "wants a client certificate that it accepts and that has not expired"
    async with Handshakes(settings) as server:
        async with AsyncClient(f"127.0.0.1:{server.port}", ca=pki.ca, **pki.client()) as good:
            assert await good.health()
        assert "none of the trusted authorities" in await _refusal(server.port, ca=other)
        assert closed in await _refusal(server.port, ca=pki.ca)
        assert closed in await _refusal(server.port, ca=pki.ca, **pki.client("stranger", signer=pki.other))
        assert closed in await _refusal(server.port, ca=pki.ca, **pki.client("late", **EXPIRED))
        server_files = {kind.removeprefix("tls_"): path for kind, path in pki.server().items()}
        assert closed in await _refusal(server.port, ca=pki.ca, **server_files)
        assert "speaks TLS and was asked without" in await _refusal(server.port)


async def test_tls_to_a_plain_server_is_named(serve: Any, pki: Any) -> None:
    """A client with TLS is told that the server has none."""
    async with serve() as running:
        assert "speaks no TLS" in await _refusal(running.server.port, ca=pki.ca)


def test_client_files_that_cannot_be_used_are_named(pki: Any) -> None:
    """A swapped key and truncated files are refused when the client is made, not at each connection."""
    robot, other = pki.client(), pki.client("other")
    with pytest.raises(ConfigError, match=r"other\.key are not a certificate"):
        Client(ca=pki.ca, cert=robot["cert"], key=other["key"])
    with pytest.raises(ConfigError, match=r"other\.pem and .* are not a certificate"):
        Client(ca=pki.ca, cert=_truncated(other["cert"]), key=other["key"])
    with pytest.raises(ConfigError, match=r"ca\.pem holds no certificate"):
        Client(ca=_truncated(pki.ca))
    Client(ca=pki.ca, **robot).close()


def _served_serial(port: int) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        found = connection.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def _serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


async def test_certificates_rotate_under_a_running_stream(serve: Any, pki: Any) -> None:
    """After new files are written new connections get them, and the stream that runs goes on to its end."""
    files = pki.server()
    async with serve(**files) as running:
        go_on = running.backend.hold_after(8)
        old = _serial(files["tls_cert"])
        assert await asyncio.to_thread(_served_serial, running.server.port) == old
        async with AsyncClient(running.target, ca=pki.ca) as client:
            pieces = aiter(client.chat("Go"))
            text = await anext(pieces)
            pki.server()  # the same paths
            new = _serial(files["tls_cert"])
            assert new != old
            assert await asyncio.to_thread(_served_serial, running.server.port) == new
            assert not running.is_idle()
            go_on.set()
            text += "".join([piece async for piece in pieces])
            assert text == ANSWER
        async with AsyncClient(running.target, ca=pki.ca) as client:
            assert await client.health()
        assert [line["event"] for line in running.log].count("tls.rotated") == 1


async def test_without_the_fetcher_nothing_rotates(serve: Any, pki: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: it is the fetcher that brings new files; without it new connections get the old certificate."""
    monkeypatch.setattr(TlsFiles, "_fetch", lambda self: None)
    files = pki.server()
    async with serve(**files) as running:
        old = _serial(files["tls_cert"])
        pki.server()
        assert await asyncio.to_thread(_served_serial, running.server.port) == old
        assert _serial(files["tls_cert"]) != old


async def test_broken_rotation_keeps_the_old_certificate(serve: Any, pki: Any) -> None:
    """New files that do not fit or are cut leave the old ones in force and say why once; fitting ones then count."""
    files = pki.server()
    async with serve(**files) as running:
        old = _serial(files["tls_cert"])

        async def served() -> int:
            return await asyncio.to_thread(_served_serial, running.server.port)

        fresh = pki.server("fresh")
        pki.write("server.pem", fresh["tls_cert"].read_bytes())  # its key has not come yet
        assert [await served(), await served()] == [old, old]
        (refused,) = [line for line in running.log if line["event"] == "tls.rotation_refused"]
        assert "is not the key of" in refused["reason"]
        assert refused["log_level"] == "warning"
        _truncated(files["tls_cert"])
        assert await served() == old
        files["tls_key"].unlink()
        assert await served() == old
        assert [line["event"] for line in running.log].count("tls.rotation_refused") == 3
        pki.write("server.key", fresh["tls_key"].read_bytes())
        pki.write("server.pem", fresh["tls_cert"].read_bytes())
        assert await served() == _serial(fresh["tls_cert"])


async def test_client_authorities_rotate(serve: Any, pki: Any) -> None:
    """Once the file names another authority, clients of the old one can no longer connect and those of the new can."""
    robot = pki.client()
    stranger = pki.client("stranger", signer=pki.other)
    trusted = pki.write("clients.pem", pki.authority.certificate_pem)
    async with serve(**pki.server(), tls_client_ca=trusted) as running:

        async def can_connect(files: Any) -> bool:
            async with AsyncClient(running.target, ca=pki.ca, can_retry=False, **files) as client:
                try:
                    return await client.health()
                except ServerUnavailable:
                    return False

        assert [await can_connect(robot), await can_connect(stranger)] == [True, False]
        pki.write("clients.pem", pki.other.certificate_pem)
        assert [await can_connect(robot), await can_connect(stranger)] == [False, True]


class _Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def _files(pki: Any, clock: _Clock, **changes: Any) -> tuple[TlsFiles, structlog.testing.LogCapture]:
    lines = structlog.testing.LogCapture()
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[lines])
    return TlsFiles(ServerSettings(**pki.server(**changes)), log=log, now=clock), lines


def test_expiry_is_told_two_weeks_before(pki: Any) -> None:
    """From 14 days before its end a certificate is warned of once a day, and the time of expiry can be read."""
    clock = _Clock()
    tls, lines = _files(pki, clock, lifetime=timedelta(days=20))
    ends = datetime.fromtimestamp(tls.expiry_time, UTC)
    assert abs(ends - NOW - timedelta(days=20)) < timedelta(hours=2)
    tls.refresh()
    clock.now = ends - EXPIRY_WARNING - timedelta(hours=1)
    tls.refresh()
    assert lines.entries == []
    for hours, warnings in ((0, 1), (20, 1), (25, 2), (14 * 24 + 1, 3)):  # the last one is after the end
        clock.now = ends - EXPIRY_WARNING + timedelta(hours=hours, seconds=1)
        tls.refresh()
        assert [line["event"] for line in lines.entries] == ["tls.expires_soon"] * warnings
    assert lines.entries[0]["days_left"] == 13


def test_a_clock_that_was_not_set_is_told_with_both_times(pki: Any) -> None:
    """On a board whose clock starts in 1970 the log says from when on the certificate is valid, and the time there."""
    clock = _Clock()
    clock.now = datetime(1970, 1, 1, 0, 0, 42, tzinfo=UTC)
    tls, lines = _files(pki, clock)
    tls.credentials()
    (line,) = [line for line in lines.entries if line["event"] == "tls.not_yet_valid"]
    assert "1970-01-01 00:00:42 UTC" in line["reason"]
    begins = x509.load_pem_x509_certificate((pki.folder / "server.pem").read_bytes()).not_valid_before_utc
    assert f"valid from {begins:%Y-%m-%d %H:%M:%S UTC}" in line["reason"]
    assert "set the clock" in line["reason"]


def test_a_certificate_for_later_waits_for_its_time(pki: Any) -> None:
    """A new certificate that begins in the future takes over when it does, and not before."""
    clock = _Clock()
    tls, lines = _files(pki, clock)
    first = tls.expiry_time
    pki.server(now=NOW + timedelta(days=2))
    tls.refresh()
    tls.refresh()
    assert tls.expiry_time == first
    assert [line["event"] for line in lines.entries] == ["tls.rotation_refused"]
    clock.now = NOW + timedelta(days=2)
    tls.refresh()
    assert tls.expiry_time > first


def test_a_key_that_others_can_read_is_warned_of(pki: Any) -> None:
    """A key file that is not its owner's alone is used, and the log says how to close it."""
    tls, lines = _files(pki, _Clock())
    tls.credentials()
    assert lines.entries == []
    key = pki.folder / "server.key"
    key.chmod(0o644)
    tls.credentials()
    (line,) = lines.entries
    assert (line["event"], line["remedy"]) == ("tls.key_readable", f"chmod 600 {key}")
