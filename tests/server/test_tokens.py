"""The file of tokens, without a server."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from edgephi.errors import ConfigError, Unauthenticated
from edgephi.server.tokens import TOKEN_PREFIX, Scope, TokenStore, add_token, read_tokens, revoke_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where no file is yet."""
    return tmp_path / "edgephi" / "tokens.json"


def _store(path: Path, **options: Any) -> tuple[TokenStore, structlog.testing.LogCapture]:
    lines = structlog.testing.LogCapture()
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[lines])
    return TokenStore(path, log=log, **options), lines


def test_tokens_have_256_bits_and_are_kept_as_hashes(path: Path) -> None:
    """A token is long, random and recognizable; the file has its SHA-256 and is its owner's alone."""
    made = [add_token(path, f"robot-{index}")[0] for index in range(5)]
    assert len(set(made)) == 5
    content = path.read_text()
    for secret in made:
        assert secret.startswith(TOKEN_PREFIX)
        assert len(secret) == len(TOKEN_PREFIX) + 43  # 256 bits in base 64
        assert secret[len(TOKEN_PREFIX) :] not in content
        assert hashlib.sha256(secret.encode()).hexdigest() in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_store_finds_names_and_scopes(path: Path) -> None:
    """Each token gives its own entry; what is not exactly one of them gives none."""
    robot, _ = add_token(path, "robot")
    boss, _ = add_token(path, "boss", scope=Scope.ADMIN)
    store, _ = _store(path)
    assert (store.find(robot).name, store.find(robot).scope) == ("robot", Scope.INFER)
    assert (store.find(boss).name, store.find(boss).scope) == ("boss", Scope.ADMIN)
    digest = read_tokens(path)[0].sha256
    for wrong in ("", robot[:-1], robot + " ", robot.lower(), digest, "\ud800", "x" * 100_000):
        with pytest.raises(Unauthenticated, match="not known"):
            store.find(wrong)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_that_would_mislead_are_refused(path: Path, name: str) -> None:
    """A name that could be mistaken in a log or a path is refused, and nothing is written."""
    with pytest.raises(ConfigError, match="name"):
        add_token(path, name)
    assert not path.exists()


def test_names_are_unique_until_revoked(path: Path) -> None:
    """A taken name is refused with the way out; a revoked one can be given again, with another token."""
    first, _ = add_token(path, "robot")
    with pytest.raises(ConfigError, match="edgephi token revoke robot"):
        add_token(path, "robot")
    revoke_token(path, "robot")
    with pytest.raises(ConfigError, match="no token 'robot'"):
        revoke_token(path, "robot")
    second, _ = add_token(path, "robot")
    assert first != second


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"tokens": [{}]}',
        b'{"version": 2, "tokens": []}',
        b'{"tokens": [{"name": "x", "sha256": "short", "scope": "infer", "created": "2026-01-01T00:00:00Z"}]}',
        b'{"tokens": [{"name": "x", "sha256": "'
        + b"0" * 64
        + b'", "scope": "root", "created": "2026-01-01T00:00:00Z"}]}',
        b'{"tokens": [{"name": "x", "sha256": "'
        + b"0" * 64
        + b'", "scope": "infer", "created": "2026-01-01T00:00:00"}]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_refused_and_a_running_server_keeps_what_it_had(path: Path, content: bytes) -> None:
    """A damaged file stops a start; under a running server the last tokens stay in force and the log says so once."""
    secret, _ = add_token(path, "robot")
    store, lines = _store(path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not what"):
        read_tokens(path)
    assert store.find(secret).name == store.find(secret).name == "robot"
    (line,) = lines.entries
    assert (line["event"], line["in_force"]) == ("tokens.unreadable", 1)
    path.unlink()
    assert store.find(secret).name == "robot"
    add_token(path, "other")
    with pytest.raises(Unauthenticated):
        store.find(secret)


def test_expiry_goes_by_a_clock_that_can_be_right(path: Path) -> None:
    """A token is accepted until its time; one with a time is refused by a clock from before it was made."""
    forever, _ = add_token(path, "forever")
    week, _ = add_token(path, "week", lifetime=timedelta(days=7))
    created = datetime.now(UTC)
    for now, is_good in (
        (created, True),
        (created + timedelta(days=6, hours=23), True),
        (created + timedelta(days=7, seconds=1), False),
        (created - timedelta(hours=23), True),
        (datetime(1970, 1, 1, tzinfo=UTC), False),
    ):
        store, _ = _store(path, now=lambda now=now: now)
        assert store.find(forever).name == "forever"
        if is_good:
            assert store.find(week).name == "week"
        else:
            with pytest.raises(Unauthenticated, match=r"'week' (expired at|was made at .* set the server's clock)"):
                store.find(week)


def _add_many(path: Path, first: int) -> None:
    for index in range(first, first + 10):
        add_token(path, f"robot-{index}")


def test_two_processes_that_add_tokens_lose_none(path: Path) -> None:
    """Tokens added at the same time by two programs are all there."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(path, first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(json.loads(path.read_text())["tokens"]) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_service(tmp_path: Path) -> None:
    """Files and folders that root makes get the owner of what they replace or of the folder above."""
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 12345, 12346)
    path = tmp_path / "new" / "tokens.json"
    add_token(path, "robot")
    assert {(found.stat().st_uid, found.stat().st_gid) for found in (path, path.parent)} == {(12345, 12346)}
    os.chown(path, 777, 777)
    add_token(path, "other")
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (777, 0o600)
