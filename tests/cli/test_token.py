from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgephi.server.tokens import read_tokens


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests out of the user's tokens."""
    monkeypatch.setenv("EDGEPHI_SERVE_TOKENS", str(tmp_path / "tokens.json"))
    return tmp_path / "tokens.json"


def test_a_token_is_printed_once_and_alone(invoke: Any, tokens: Path) -> None:
    """Standard output is the token and nothing else, so that it can go into a file; list shows names only."""
    added = invoke("token", "add", "kitchen-robot", "--days", "90")
    assert added.exit_code == 0
    secret = added.stdout.strip()
    assert secret.startswith("edgephi_")
    assert secret not in added.stderr
    assert "EDGEPHI_TOKEN" in added.stderr
    listed = invoke("token", "list").stdout
    assert "kitchen-robot" in listed
    assert secret not in listed
    (row,) = json.loads(invoke("token", "list", "--json").stdout)
    assert (row["name"], row["scope"], row.keys() & {"sha256", "token"}) == ("kitchen-robot", "infer", set())
    (kept,) = read_tokens(tokens)
    assert kept.expires is not None
    assert (kept.expires - kept.created).days == 90


def test_revoke_removes_one_token(invoke: Any, tokens: Path) -> None:
    """Revoking takes one name out; an unknown one is an error with the way to see them."""
    for name in ("one", "two"):
        made = json.loads(invoke("token", "add", name, "--scope", "admin", "--json").stdout)
        assert (made["name"], made["scope"], made["expires"]) == (name, "admin", None)
    assert invoke("token", "revoke", "one").exit_code == 0
    assert [token.name for token in read_tokens(tokens)] == ["two"]
    refused = invoke("token", "revoke", "one")
    assert (refused.exit_code, "edgephi token list" in refused.stderr) == (1, True)


def test_a_file_can_be_named(invoke: Any, tmp_path: Path, tokens: Path) -> None:
    """--tokens outranks the variable that the server reads, and folders are made."""
    path = tmp_path / "etc" / "edgephi" / "tokens.json"
    assert invoke("token", "add", "robot", "--tokens", path).exit_code == 0
    assert [token.name for token in read_tokens(path)] == ["robot"]
    assert not tokens.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("add", "a/b"), 1, "a/b"),
        (("add", "robot", "--scope", "root"), 2, "root"),
        (("list",), 1, "edgephi token add NAME"),
        (("revoke", "robot"), 1, "edgephi token add NAME"),
    ],
)
def test_what_cannot_be_done_is_said(invoke: Any, arguments: tuple[str, ...], status: int, said: str) -> None:
    """A wrong command ends with a message that names the value or the right command."""
    result = invoke("token", *arguments)
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr
