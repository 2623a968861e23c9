from __future__ import annotations

import hashlib
import json
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgephi.cli import cert
from edgephi.cli.certificates import new_authority, new_client, own_addresses, own_names
from edgephi.errors import ConfigError

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests out of the user's certificates."""
    monkeypatch.setenv("EDGEPHI_CERTS", str(tmp_path / "certs"))
    return tmp_path / "certs"


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_an_authority_and_a_server(invoke: Any, folder: Path) -> None:
    """The certificate names this machine in every way and each --name; keys and folder are their owner's alone."""
    result = invoke("cert", "init", "--name", "robot.example.org", "--name", "192.168.1.20", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert {*own_names(), "localhost", "127.0.0.1", "robot.example.org", "192.168.1.20"} == set(made["names"])
    assert 820 <= made["days_left"] <= 825
    assert [_mode(folder / name) for name in ("ca.key", "server.key")] == [0o600, 0o600]
    assert _mode(folder) == 0o700
    authority, server = _load(folder / "ca.pem"), _load(folder / "server.pem")
    server.verify_directly_issued_by(authority)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.not_valid_after_utc - NOW > timedelta(days=3600)
    purposes = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # another library takes them as well
    context.load_cert_chain(folder / "server.pem", folder / "server.key")


def test_an_authority_is_replaced_by_force_only(invoke: Any, folder: Path) -> None:
    """A second init is refused and changes nothing; with --force there is a new authority."""
    assert invoke("cert", "init").exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = invoke("cert", "init")
    assert refused.exit_code == 1
    assert "edgephi cert issue --server" in refused.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert invoke("cert", "init", "--force").exit_code == 0
    assert (folder / "ca.pem").read_bytes() != before["ca.pem"]


def test_a_bundle_has_what_a_client_needs(invoke: Any, folder: Path, tmp_path: Path) -> None:
    """Issue writes the authority, a certificate with the client's name and its key, and does not overwrite them."""
    invoke("cert", "init")
    out = tmp_path / "bundle"
    assert invoke("cert", "issue", "kitchen-robot", "--out", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["ca.pem", "client.key", "client.pem"]
    assert (_mode(out), _mode(out / "client.key")) == (0o700, 0o600)
    assert (out / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()
    client = _load(out / "client.pem")
    client.verify_directly_issued_by(_load(folder / "ca.pem"))
    assert [part.value for part in client.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["kitchen-robot"]
    assert client.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME) == []
    purposes = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    refused = invoke("cert", "issue", "other", "--out", out)
    assert (refused.exit_code, "--force" in refused.stderr) == (1, True)
    assert _load(out / "client.pem") == client
    assert invoke("cert", "issue", "boss", "--admin").exit_code == 0
    boss = _load(folder / "clients" / "boss" / "client.pem")
    assert [part.value for part in boss.subject] == ["edgephi-admin", "boss"]


def test_a_renewed_server_keeps_its_names(invoke: Any, folder: Path) -> None:
    """--server makes a new certificate by the same authority, with the names of before and those of now."""
    invoke("cert", "init", "--name", "robot.example.org")
    before = _load(folder / "server.pem")
    result = invoke("cert", "issue", "--server", "--name", "10.1.2.3", "--days", "30", "--json")
    assert {"robot.example.org", "10.1.2.3", "localhost"} <= set(json.loads(result.stdout)["names"])
    after = _load(folder / "server.pem")
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc - NOW < timedelta(days=31)
    after.verify_directly_issued_by(_load(folder / "ca.pem"))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("issue",), 2, "NAME of a client, or --server"),
        (("issue", "robot", "--server"), 2, "not both"),
        (("issue", "--server", "--admin"), 2, "for a client"),
        (("issue", "robot", "--name", "x"), 2, "for --server"),
        (("issue", "robot", "--days", "0"), 2, "0"),
        (("issue", "robot"), 1, "edgephi cert init"),
        (("issue", "../robot"), 1, "name '../robot'"),
        (("init", "--name", "http://robot"), 1, "leave out port and scheme"),
        (("show",), 1, "edgephi cert init"),
    ],
)
def test_what_cannot_be_done_is_said(
    invoke: Any, folder: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """A wrong command names the right one, and leaves no half of a folder."""
    result = invoke("cert", *arguments)
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_foreign_key_beside_the_authority_is_named(invoke: Any, folder: Path) -> None:
    """An authority whose key is another's, or damaged, is not used to sign."""
    invoke("cert", "init")
    (folder / "ca.key").write_bytes((folder / "server.key").read_bytes())
    assert "is not the key of" in invoke("cert", "issue", "robot").stderr
    (folder / "ca.key").write_bytes(b"noise")
    assert "no unencrypted private key" in invoke("cert", "issue", "robot").stderr


def test_show_tells_everything_about_any_certificate(invoke: Any, folder: Path) -> None:
    """Show prints subject, names, dates and the fingerprint that other tools print; never a key."""
    invoke("cert", "init")
    rows = json.loads(invoke("cert", "show", "--json").stdout)
    assert [Path(row["file"]).name for row in rows] == ["ca.pem", "server.pem"]
    assert [row["warning"] for row in rows] == [None, None]
    text = invoke("cert", "show", folder / "server.pem").stdout
    der = ssl.PEM_cert_to_DER_cert((folder / "server.pem").read_text())
    assert hashlib.sha256(der).hexdigest().upper() in text.replace(":", "")
    assert "localhost" in text
    refused = invoke("cert", "show", folder / "server.key")
    assert (refused.exit_code, "private key, which is not shown" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (0, None),
        (-1, "clock says"),
        (780, None),
        (800, "expires in 2"),
        (826, "expired at"),
    ],
)
def test_show_warns_by_the_clock(invoke: Any, monkeypatch: pytest.MonkeyPatch, days: int, said: str | None) -> None:
    """A certificate that is not valid yet, has expired or soon will is warned of, with both times."""
    invoke("cert", "init")
    monkeypatch.setattr(cert, "_now", lambda: NOW + timedelta(days=days, hours=-1 if days < 0 else 0))
    warning = json.loads(invoke("cert", "show", "--json").stdout)[1]["warning"]
    assert warning is None if said is None else said in warning
    if days in (-1, 826):
        assert f"{NOW + timedelta(days=days, hours=-1 if days < 0 else 0):%Y-%m-%d}" in warning


def test_a_clock_that_was_not_set_makes_no_certificates() -> None:
    """In 1970 nothing is made, for it would have expired when the clock is right; the message has the time."""
    with pytest.raises(ConfigError, match="clock says 1970-01-01 00:00:00 UTC"):
        new_authority("x", now=datetime(1970, 1, 1, tzinfo=UTC))


def test_no_certificate_outlives_its_authority() -> None:
    """A certificate ends with its authority at the latest, and none is made by one that has expired."""
    authority = new_authority("x", now=NOW)
    client = new_client(authority, "robot", now=NOW + timedelta(days=3000), lifetime=timedelta(days=825))
    assert client.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="edgephi cert init --force"):
        new_client(authority, "robot", now=NOW + timedelta(days=3651), lifetime=timedelta(days=825))


def test_own_addresses_are_read_from_the_kernel(tmp_path: Path) -> None:
    """Addresses of both families are found, without loopback and those of one link; without the files none is."""
    net = tmp_path / "net"
    net.mkdir()
    (net / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.168.7.0\n"
        "        /24 link UNICAST\n        |-- 192.168.7.42\n           /32 host LOCAL\n     |-- 192.168.7.255\n"
        "        /32 link BROADCAST\n"
    )
    (net / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe80000000000000021122fffe334455 02 40 20 80     eth0\n"
        "fd000000000000000000000000000002 02 40 00 80     eth0\n"
    )
    assert own_addresses(tmp_path) == ("192.168.7.42", "fd00::2")
    assert own_addresses(tmp_path / "absent") == ()
