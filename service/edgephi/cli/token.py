"""``edgephi token``: who may call a server."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.options import json_option
from edgephi.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgephi.server.tokens import Token

SCOPES = ("infer", "admin")

tokens_option = click.option(
    "--tokens",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="EDGEPHI_SERVE_TOKENS",
    help="File of tokens, as `edgephi serve --tokens` reads it."
    "  [default: $EDGEPHI_SERVE_TOKENS, or edgephi/tokens.json in the user's configuration folder]",
)


@click.group("token", short_help="Give, list and revoke tokens of clients.")
def token() -> None:
    """
    Give a client a token for a server, list who has one, and revoke them.

    The file keeps hashes only. A running server takes changes from its next call on.
    """


@token.command("add", short_help="Make a token.")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default=SCOPES[0],
    show_default=True,
    help="infer asks for answers and reads the state; admin may do everything.",
)
@click.option("--days", type=click.IntRange(1, 36500), help="How long it is accepted.  [default: until revoked]")
@tokens_option
@json_option
def add(*, name: str, scope: str, days: int | None, tokens: Path | None, as_json: bool) -> None:
    """
    Make a token for the client NAME and print it once on standard output; it cannot be shown again.

    \b
    Examples:
      edgephi token add kitchen-robot
      edgephi token add kitchen-robot --days 90 > kitchen-robot.token
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.server.tokens import Scope, add_token

    path = _path(tokens)
    lifetime = None if days is None else timedelta(days=days)
    secret, made = add_token(path, name, scope=Scope(scope), lifetime=lifetime)
    if as_json:
        print_json({"token": secret, "file": str(path), **_describe(made)})
        return
    click.echo(
        f"token {name!r} added to {path}; this is the only time it is shown. Next:\n"
        f"  edgephi serve --tokens {path} --tls-cert ... --tls-key ...\n"
        "  on the client put it into EDGEPHI_TOKEN, or into a file for --token-file (mode 600)",
        err=True,
    )
    click.echo(secret)


@token.command("list", short_help="List tokens.")
@tokens_option
@json_option
def list_command(*, tokens: Path | None, as_json: bool) -> None:
    """
    List the names and scopes of all tokens; the tokens themselves are not kept.

    \b
    Example:
      edgephi token list
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.server.tokens import read_tokens

    rows = [_describe(found) for found in read_tokens(_path(tokens))]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "SCOPE", "CREATED", "EXPIRES"),
        [(row["name"], row["scope"], row["created"], row["expires"] or "never") for row in rows],
    )


@token.command("revoke", short_help="Revoke a token.")
@click.argument("name")
@tokens_option
@json_option
def revoke(*, name: str, tokens: Path | None, as_json: bool) -> None:
    """
    Revoke the token of NAME: servers refuse it from their next call on; calls that run go on.

    \b
    Example:
      edgephi token revoke kitchen-robot
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.server.tokens import revoke_token

    path = _path(tokens)
    revoke_token(path, name)
    if as_json:
        print_json({"name": name, "file": str(path)})
    else:
        click.echo(f"token {name!r} revoked in {path}")


def _describe(found: Token) -> dict[str, Any]:
    return {
        "name": found.name,
        "scope": found.scope.value,
        "created": f"{found.created:%Y-%m-%dT%H:%M:%SZ}",
        "expires": None if found.expires is None else f"{found.expires:%Y-%m-%dT%H:%M:%SZ}",
    }


def _path(chosen: Path | None) -> Path:
    from edgephi.server.tokens import default_tokens_path

    return (chosen or default_tokens_path()).absolute()
