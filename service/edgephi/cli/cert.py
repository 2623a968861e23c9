"""``edgephi cert``: an authority of one's own, and certificates for a server and its clients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import platformdirs

from edgephi.cli.options import json_option
from edgephi.cli.output import print_json
from edgephi.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

    from edgephi.cli.certificates import Identity

CERTS_ENV = "EDGEPHI_CERTS"
NEAR_EXPIRY_DAYS = 30
MAX_AUTHORITY_NAME = 64
# The longest that phones and desktops accept of a server. Source: Apple, "Requirements for trusted certificates".
LEAF_DAYS = 825

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

dir_option = click.option(
    "--dir",
    type=_FOLDER,
    envvar=CERTS_ENV,
    help=f"Folder of the authority.  [default: ${CERTS_ENV}, or edgephi/certs in the user's configuration folder]",
)
name_option = click.option(
    "--name",
    multiple=True,
    metavar="NAME",
    help="One more host name or IP address under which clients reach the server; may be repeated.",
)
days_option = click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=LEAF_DAYS,
    show_default=True,
    help="How long the certificate is valid; no longer than the authority.",
)


@click.group("cert", short_help="Make and show certificates for TLS.")
def cert() -> None:
    """
    Make a local authority, a server's certificate and bundles for clients, and show what a certificate says.

    The authority's key (ca.key) signs everything: keep it on one machine. Clients need ca.pem only, and with mutual
    TLS a certificate of their own.
    """


@cert.command("init", short_help="Make an authority and a server's certificate.")
@dir_option
@name_option
@days_option
@click.option("--force", is_flag=True, help="Replace the authority: clients then need the new ca.pem.")
@json_option
def init(*, dir: Path | None, name: tuple[str, ...], days: int, force: bool, as_json: bool) -> None:  # noqa: A002
    """
    Make an authority, and a certificate for the server on this machine.

    The certificate names this machine's host name, HOST.local, localhost and all its addresses, and each --name.

    \b
    Examples:
      edgephi cert init
      edgephi cert init --name robot.example.org --name 192.168.1.20
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.cli.certificates import new_authority, own_names
    from edgephi.server.private_files import PUBLIC, locked_folder, write_file

    folder = _folder(dir)
    now = _now()
    with locked_folder(folder):
        if not force and (folder / "ca.pem").exists():
            raise ConfigError(
                f"{folder} has an authority already; `edgephi cert issue --server` renews the server's certificate, "
                "and --force replaces the authority, after which every client needs the new ca.pem"
            )
        names = (*own_names(), *name)
        authority = new_authority(f"edgephi authority of {names[0]}"[:MAX_AUTHORITY_NAME], now=now)
        server = _new_server(authority, names, now=now, days=days)
        write_file(folder / "ca.key", authority.key_pem)
        write_file(folder / "ca.pem", authority.certificate_pem, mode=PUBLIC)
        _write_server(folder, server)
    files = {"ca": folder / "ca.pem", "cert": folder / "server.pem", "key": folder / "server.key"}
    if as_json:
        print_json({"files": _paths(files), **_describe(server.certificate, now)})
        return
    _tell_server(server, now)
    click.echo(
        "\nNext:\n"
        "  edgephi token add NAME                   a token for a client\n"
        f"  edgephi serve --host 0.0.0.0 --tls-cert {files['cert']} --tls-key {files['key']} --tokens FILE\n"
        f"  copy {files['ca']} to each client, which connects with --tls-ca ca.pem\n"
        f"Keep {folder / 'ca.key'} to yourself: whoever has it can pose as the server and as any client."
    )


@cert.command("issue", short_help="Make a certificate for a client, or a new one for the server.")
@click.argument("client", metavar="[NAME]", required=False)
@click.option("--server", is_flag=True, help="Renew the server's certificate in the authority's folder instead.")
@name_option
@click.option(
    "--out", type=_FOLDER, help="Folder for the client's files.  [default: clients/NAME beside the authority]"
)
@click.option("--admin", is_flag=True, help="The client may do everything, not only ask for answers.")
@click.option("--force", is_flag=True, help="Replace the client's files.")
@days_option
@dir_option
@json_option
def issue(
    *,
    client: str | None,
    server: bool,
    name: tuple[str, ...],
    out: Path | None,
    admin: bool,
    force: bool,
    days: int,
    dir: Path | None,  # noqa: A002
    as_json: bool,
) -> None:
    """
    Make a bundle for the client NAME: ca.pem, client.pem and client.key. With --server renew the server's certificate.

    A server that asks for certificates (--tls-client-ca ca.pem) knows the client by NAME. A renewed certificate of the
    server keeps the names it had, and a running server takes it for new connections by itself.

    \b
    Examples:
      edgephi cert issue kitchen-robot --out kitchen-robot
      edgephi cert issue --server --name 192.168.1.30
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.cli.certificates import load_identity, own_names
    from edgephi.server.tokens import check_name

    if server == (client is not None):
        raise click.UsageError("give the NAME of a client, or --server; not both and not neither")
    if server and (out is not None or admin):
        raise click.UsageError("--out and --admin are for a client")
    if client is not None and name:
        raise click.UsageError("--name is for --server: a client is known by NAME alone")
    if client is not None:
        check_name(client)
    folder = _folder(dir)
    authority = load_identity(folder / "ca.pem", folder / "ca.key")
    now = _now()
    if client is None:
        files = {"cert": folder / "server.pem", "key": folder / "server.key"}
        made = _new_server(authority, (*own_names(), *_names_in(files["cert"]), *name), now=now, days=days)
        _write_server(folder, made)
    else:
        made, files = _issue_client(
            authority, client, out or folder / "clients" / client, admin=admin, force=force, now=now, days=days
        )
    if as_json:
        print_json({"files": _paths(files), **_describe(made.certificate, now)})
    elif client is None:
        _tell_server(made, now)
        click.echo("A running server takes it for new connections within a minute.")
    else:
        click.echo(
            f"{client}: {', '.join(path.name for path in files.values())} in {files['ca'].parent}, valid until "
            f"{made.certificate.not_valid_after_utc:%Y-%m-%d}\n"
            "Next: copy them to the client, and there\n"
            "  edgephi run --connect HOST:50051 --tls-ca ca.pem --tls-cert client.pem --tls-key client.key ..."
        )


@cert.command("show", short_help="Show what certificates say.")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=_FILE)
@dir_option
@json_option
def show(*, files: tuple[Path, ...], dir: Path | None, as_json: bool) -> None:  # noqa: A002
    """
    Show subject, names, dates and fingerprint of each certificate in FILE; by default the authority's and the server's.

    \b
    Examples:
      edgephi cert show
      edgephi cert show client.pem
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.cli.certificates import load_certificates

    if not files:
        folder = _folder(dir)
        files = tuple(path for path in (folder / "ca.pem", folder / "server.pem") if path.exists())
        if not files:
            raise ConfigError(f"{folder} holds no certificates; `edgephi cert init` makes them, or name a file")
    now = _now()
    found = [
        {"file": str(path), **_describe(certificate, now)} for path in files for certificate in load_certificates(path)
    ]
    if as_json:
        print_json(found)
        return
    for entry in found:
        for key, value in entry.items():
            if key != "warning":
                click.echo(f"{key.replace('_', ' '):<20}{', '.join(value) if isinstance(value, list) else value}")
        if entry["warning"] is not None:
            click.echo(f"warning: {entry['warning']}", err=True)
        click.echo()


def _issue_client(
    authority: Identity, client: str, out: Path, *, admin: bool, force: bool, now: datetime, days: int
) -> tuple[Identity, dict[str, Path]]:
    from edgephi.cli.certificates import new_client
    from edgephi.server.auth import ADMIN_UNIT
    from edgephi.server.private_files import PUBLIC, write_file

    files = {"ca": out / "ca.pem", "cert": out / "client.pem", "key": out / "client.key"}
    taken = next((path for path in files.values() if path.exists()), None)
    if taken is not None and not force:
        raise ConfigError(f"{taken} exists; choose another folder with --out, or --force to replace it")
    made = new_client(authority, client, unit=ADMIN_UNIT if admin else None, now=now, lifetime=timedelta(days=days))
    write_file(files["ca"], authority.certificate_pem, mode=PUBLIC)
    write_file(files["key"], made.key_pem)
    write_file(files["cert"], made.certificate_pem, mode=PUBLIC)
    return made, files


def _new_server(authority: Identity, names: Sequence[str], *, now: datetime, days: int) -> Identity:
    from edgephi.cli.certificates import new_server

    return new_server(authority, names, now=now, lifetime=timedelta(days=days))


def _names_in(path: Path) -> tuple[str, ...]:
    """Return the names of the certificate that is renewed: those given by --name when it was made are not lost."""
    from edgephi.cli.certificates import alternative_names, load_certificates

    return alternative_names(load_certificates(path)[0]) if path.exists() else ()


def _write_server(folder: Path, server: Identity) -> None:
    from edgephi.server.private_files import PUBLIC, write_file

    # A running server that reads between the two finds a key that is not the certificate's, and keeps what it has.
    write_file(folder / "server.key", server.key_pem)
    write_file(folder / "server.pem", server.certificate_pem, mode=PUBLIC)


def _tell_server(server: Identity, now: datetime) -> None:
    described = _describe(server.certificate, now)
    click.echo(f"server certificate until {described['not_after']}, for {', '.join(described['names'])}")


def _describe(certificate: x509.Certificate, now: datetime) -> dict[str, Any]:
    from edgephi.cli.certificates import alternative_names, fingerprint

    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    warning: str | None = None
    if now < begins:
        warning = f"not valid before {_text(begins)}, and this machine's clock says {_text(now)}; set the clock"
    elif now >= ends:
        warning = f"expired at {_text(ends)}, and this machine's clock says {_text(now)}; make a new one"
    elif (ends - now).days < NEAR_EXPIRY_DAYS:
        warning = f"expires in {(ends - now).days} days; make a new one"
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": list(alternative_names(certificate)),
        "not_before": _text(begins),
        "not_after": _text(ends),
        "days_left": max(0, (ends - now).days),
        "sha256": fingerprint(certificate),
        "warning": warning,
    }


def _folder(chosen: Path | None) -> Path:
    return (chosen or platformdirs.user_config_path("edgephi", appauthor=False) / "certs").absolute()


def _paths(files: dict[str, Path]) -> dict[str, str]:
    return {kind: os.fspath(path) for kind, path in files.items()}


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
