"""
Tokens that clients prove themselves with, hashed in one file.

Owns the file's format, the making of a token and the comparison. Knows no call and no command line. A token has 256
random bits, so its plain SHA-256 can be neither guessed nor looked up; the token itself is nowhere kept.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import platformdirs

from edgephi.errors import ConfigError, Unauthenticated
from edgephi.server.private_files import FileState, locked_folder, state_of, write_file

TOKEN_PREFIX = "edgephi_"  # noqa: S105 - makes a token that leaked recognizable, and is none
MAX_TOKENS = 1_000
CLOCK_SLACK = timedelta(days=1)
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = r"^[0-9a-f]{64}$"

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Scope(enum.StrEnum):
    """What a caller may do; ADMIN may do everything."""

    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """
    What is kept of one token.

    Attributes:
        name: Of its holder, unique in the file; what logs say.
        sha256: Of the token, in hexadecimal.
        scope: What its holder may do.
        created: When it was made.
        expires: From when on it is refused; None for never.
    """

    name: str
    sha256: Annotated[str, msgspec.Meta(pattern=_DIGEST)]
    scope: Scope
    created: Time
    expires: Time | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    tokens: Annotated[tuple[Token, ...], msgspec.Meta(max_length=MAX_TOKENS)] = ()


def default_tokens_path() -> Path:
    """Return where ``edgephi token`` keeps tokens unless told otherwise."""
    return platformdirs.user_config_path("edgephi", appauthor=False) / "tokens.json"


def read_tokens(path: Path) -> tuple[Token, ...]:
    """
    Read the tokens of a file.

    Raises:
        ConfigError: If it cannot be read, or is no file of tokens.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"tokens file {path} cannot be read ({error.strerror}); make a token with "
            f"`edgephi token add NAME --tokens {path}`, or name another file"
        ) from error
    try:
        return msgspec.json.decode(data, type=_File).tokens
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Of msgspec's, as it names the place and the type only, never a value.
        raise ConfigError(
            f"tokens file {path} is not what `edgephi token add` writes ({error}); restore it, or remove it and add "
            "tokens anew"
        ) from error


def add_token(
    path: Path, name: str, *, scope: Scope = Scope.INFER, lifetime: timedelta | None = None
) -> tuple[str, Token]:
    """
    Make a token and add it to a file, which is made if missing.

    Returns:
        The token, which is nowhere else, and what was kept of it.

    Raises:
        ConfigError: If the name is taken or not a name, the file is full, or it cannot be read or written.
    """
    check_name(name)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    created = datetime.now(UTC).replace(microsecond=0)
    expires = None if lifetime is None else created + lifetime
    token = Token(name=name, sha256=_digest(secret), scope=scope, created=created, expires=expires)
    with locked_folder(path.parent):
        tokens = read_tokens(path) if path.exists() else ()
        if any(other.name == name for other in tokens):
            raise ConfigError(
                f"{path} has a token {name!r} already; choose another name, or `edgephi token revoke {name}` first"
            )
        if len(tokens) >= MAX_TOKENS:
            raise ConfigError(f"{path} has {len(tokens)} tokens, which is the most; revoke some first")
        _write(path, (*tokens, token))
    return secret, token


def check_name(name: str) -> None:
    """
    Refuse a client's name that could be mistaken in a log or a path.

    Raises:
        ConfigError: If it is not a name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r} is not 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit; choose another"
        )


def revoke_token(path: Path, name: str) -> None:
    """
    Remove a token from a file; servers that read it refuse the token from their next call on.

    Raises:
        ConfigError: If the file has no token of that name, or it cannot be read or written.
    """
    with locked_folder(path.parent):
        tokens = read_tokens(path)
        kept = tuple(token for token in tokens if token.name != name)
        if len(kept) == len(tokens):
            raise ConfigError(f"{path} has no token {name!r}; `edgephi token list` shows those it has")
        _write(path, kept)


class TokenStore:
    """
    The tokens of one file as a server sees them: a changed file counts from the next call on.

    A file that cannot be read any more leaves the last tokens in force, so that a slip of an editor does not lock
    everyone out; the log says so. Its methods may be called from any thread.

    Args:
        path: File of ``edgephi token``.
        log: structlog logger.
        now: Tells the time.

    Raises:
        ConfigError: If the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path, *, log: Any, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._log = log
        self._now = now
        self._lock = threading.Lock()
        self._state: FileState = state_of(path)
        self._tokens = read_tokens(path)
        if not self._tokens:
            raise ConfigError(
                f"tokens file {path} holds no token, so nobody could call; run `edgephi token add NAME --tokens {path}`"
            )

    def find(self, secret: str) -> Token:
        """
        Return the token that a caller sent.

        Raises:
            Unauthenticated: If it is not known or out of its time. The message never holds any of it.
        """
        # Every token is compared, and each in constant time, so the duration tells nothing of what is kept.
        digest = _digest(secret)
        found = [token for token in self._current() if hmac.compare_digest(token.sha256, digest)]
        if not found:
            raise Unauthenticated(
                "the token is not known here, or was revoked; ask whoever runs this server for one "
                "(`edgephi token add NAME`)"
            )
        token, now = found[0], self._now()
        if token.expires is not None and now >= token.expires:
            raise Unauthenticated(
                f"the token {token.name!r} expired at {_text(token.expires)}; ask whoever runs this server for another"
            )
        if token.expires is not None and now < token.created - CLOCK_SLACK:
            # A board without a clock starts in 1970, where nothing has expired yet.
            raise Unauthenticated(
                f"the token {token.name!r} was made at {_text(token.created)} and the server's clock says "
                f"{_text(now)}; set the server's clock"
            )
        return token

    def _current(self) -> tuple[Token, ...]:
        state = state_of(self._path)
        with self._lock:
            if state != self._state:
                self._state = state
                self._reload()
            return self._tokens

    def _reload(self) -> None:
        try:
            self._tokens = read_tokens(self._path)
        except ConfigError as error:
            self._log.error("tokens.unreadable", reason=str(error), in_force=len(self._tokens))
        else:
            self._log.info("tokens.read", path=str(self._path), tokens=len(self._tokens))


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    content = msgspec.json.encode(dataclasses.replace(_File(), tokens=tokens))
    write_file(path, msgspec.json.format(content, indent=2) + b"\n")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogatepass")).hexdigest()


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
