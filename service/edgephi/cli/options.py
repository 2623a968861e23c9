"""Options that several commands share: what to load, and how to reach a server."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.compose import POCKET, EngineKind, ServiceOptions
from edgephi.errors import ConfigError
from edgephi.profile.plan import KvDtype

if TYPE_CHECKING:
    from edgephi.client import Client

DEFAULT_TARGET = "127.0.0.1:50051"
"""Where ``edgephi serve`` listens; written here as well because the client's own constant loads gRPC."""

TOKEN_ENV = "EDGEPHI_TOKEN"  # noqa: S105 - its name

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

# Not settable by the environment: what a script reads must not depend on it.
json_option = click.option(
    "--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Print JSON on standard output."
)

KV_DTYPE = click.Choice([kind.value for kind in KvDtype])

AUTO = "auto"


class _Threads(click.ParamType[int | None]):
    """A number of threads, or ``auto`` for None."""

    name = f"N|{AUTO}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == AUTO:
            return None
        return click.IntRange(min=1).convert(value, param, ctx)


_SERVICE = (
    click.option("-m", "--model", default=POCKET, show_default=True, help="Folder or name of a model."),
    click.option(
        "--engine",
        type=click.Choice([kind.value for kind in EngineKind]),
        default=EngineKind.TVM.value,
        show_default=True,
        help="fake answers with a fixed text, to try clients.",
    ),
    click.option("--target", metavar="LEVEL", help="Instruction-set level.  [default: the best of this CPU]"),
    click.option("--kv-tokens", type=click.IntRange(min=1), help="Tokens kept for all requests.  [default: by model]"),
    click.option(
        "--kv-dtype",
        type=KV_DTYPE,
        default=ServiceOptions().kv_dtype,
        show_default=True,
        help="Of cached keys and values: int8 takes half the memory of float16.",
    ),
    click.option(
        "--threads",
        type=_Threads(),
        help=f"Threads that compute; {AUTO} chooses for the model and this machine, as `edgephi doctor` shows."
        f"  [default: {AUTO}]",
    ),
)

_DRAFT_TOKENS = click.option(
    "--draft-tokens",
    type=click.IntRange(min=0),
    default=ServiceOptions().max_draft_tokens,
    show_default=True,
    help="Most guessed tokens checked at once, as far as that is faster; answers stay the same. 0 for none.",
)

_LOCAL = ("model", "engine", "target", "kv_tokens", "kv_dtype", "threads", "draft_tokens")

_TLS = (
    click.option("--tls-ca", type=_FILE, help="Authorities that sign the server's certificate; turns TLS on."),
    click.option("--tls-cert", type=_FILE, help="This client's certificate."),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option("--tls-server-name", metavar="NAME", help="Name in the server's certificate."),
    click.option(
        "--token-file",
        type=_FILE,
        help=f"File with the token that the server asks for; ${TOKEN_ENV} holds the token itself. Not on the command "
        "line, where everyone on the machine could read it.",
    ),
)


class Address:
    """A server's address with the files for TLS, as the options gave them."""

    def __init__(
        self,
        target: str,
        *,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        tls_server_name: str | None = None,
        token_file: Path | None = None,
    ) -> None:
        self.target = target
        self._token_file = token_file
        self._tls: dict[str, Any] = {"ca": tls_ca, "cert": tls_cert, "key": tls_key, "server_name": tls_server_name}

    @contextlib.contextmanager
    def connect(self, *, timeout_s: float | None = None, can_retry: bool = False) -> Iterator[Client]:
        """
        Open a client for a ``with`` block.

        Raises:
            ConfigError: If a file cannot be read or a certificate has no key.
            ServerUnavailable: From the block, with the address and what to do, where nothing answered there.
        """
        from edgephi.client import Client, ServerUnavailable, TlsOptions

        tls = TlsOptions(**self._tls) if any(value is not None for value in self._tls.values()) else None
        token = self._token(has_tls=tls is not None)
        with Client(self.target, tls=tls, token=token, timeout_s=timeout_s, can_retry=can_retry) as client:
            try:
                yield client
            except ServerUnavailable as error:
                if error.reason is not None:  # the server itself said so: it is loading or draining
                    raise
                if error.hint is not None:
                    hint = error.hint + self._authority_dates()
                    raise ServerUnavailable(f"no connection to {self.target}", code=error.code, hint=hint) from error
                detail = str(error).rsplit(": ", 1)[-1]  # gRPC's message repeats the address in several forms
                remedy = "start one with `edgephi serve`, or name another with --connect"
                if tls is None:
                    remedy += "; if it uses TLS, add --tls-ca"
                raise ServerUnavailable(
                    f"no server answers at {self.target} ({detail}); {remedy}",
                    code=error.code,
                ) from error

    def _token(self, *, has_tls: bool) -> str | None:
        if self._token_file is not None:
            return self._token_file.read_text(encoding="utf-8", errors="replace").strip()
        # A variable may be set for another server: without TLS it is not sent rather than refused.
        return os.environ.get(TOKEN_ENV) or None if has_tls else None

    def _authority_dates(self) -> str:
        """Return when the authority's certificate begins and ends, for people whose clock may be wrong."""
        from edgephi.cli.certificates import load_certificates

        if self._tls["ca"] is None:
            return ""
        with contextlib.suppress(ConfigError):
            found = load_certificates(self._tls["ca"])[0]
            begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
            return f" ({self._tls['ca']} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC)"
        return ""


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --model, --engine, --target, --kv-tokens, --kv-dtype and --threads; the command takes them as ``service``."""

    @functools.wraps(command)
    def with_service(
        *,
        model: str,
        engine: str,
        target: str | None,
        kv_tokens: int | None,
        kv_dtype: str,
        threads: int | None,
        **rest: Any,
    ) -> Any:
        service = ServiceOptions(
            model=model,
            engine=EngineKind(engine),
            level=target,
            kv_tokens=kv_tokens,
            kv_dtype=kv_dtype,
            threads=threads,
        )
        return command(service=service, **rest)

    return _add(with_service, _SERVICE)


def answering_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what :func:`service_options` does, and --draft-tokens; the command takes them as ``service``."""

    @functools.wraps(command)
    def with_drafts(*, service: ServiceOptions, draft_tokens: int, **rest: Any) -> Any:
        return command(service=dataclasses.replace(service, max_draft_tokens=draft_tokens), **rest)

    return service_options(_add(with_drafts, (_DRAFT_TOKENS,)))


def connect_options(*, is_required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Add --connect and the TLS files; the command takes them as ``address``.

    Args:
        is_required: Whether the command always needs a server: --connect then defaults to this machine's.
            Otherwise ``address`` is None without --connect.
    """
    connect = click.option(
        "--connect",
        metavar="HOST:PORT",
        default=DEFAULT_TARGET if is_required else None,
        show_default=is_required,
        help="The server to ask." if is_required else "Ask this server instead of loading a model here.",
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_address(
            *,
            connect: str | None,
            tls_ca: Path | None,
            tls_cert: Path | None,
            tls_key: Path | None,
            tls_server_name: str | None,
            token_file: Path | None,
            **rest: Any,
        ) -> Any:
            files = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
            if connect is None and any(value is not None for value in (*files.values(), tls_server_name, token_file)):
                raise click.UsageError("the --tls options and --token-file need --connect")
            if connect is not None and not is_required:
                _refuse_local_options(click.get_current_context())
            address = (
                None
                if connect is None
                else Address(connect, **files, tls_server_name=tls_server_name, token_file=token_file)
            )
            return command(address=address, **rest)

        return _add(with_address, (connect, *_TLS))

    return decorate


def _refuse_local_options(context: click.Context) -> None:
    """Refuse options of a model loaded here beside --connect: ignoring them would answer with another model."""
    for option in _LOCAL:
        if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{option.replace('_', '-')} is for a model loaded here; leave out --connect or it"
            )


def _add(command: Callable[..., Any], options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
