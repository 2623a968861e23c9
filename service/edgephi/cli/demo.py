"""``edgephi demo``: a server and a client talking, from start to stop, in one command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from edgephi.cli.answers import format_seconds
from edgephi.cli.compose import ServiceOptions
from edgephi.cli.options import json_option, service_options
from edgephi.cli.output import ProgressLine, print_json
from edgephi.errors import EngineFailed

if TYPE_CHECKING:
    from edgephi.client import Client

PROMPTS = (
    "turn on the kitchen light",
    "set the bedroom to 21 degrees",
    "please close the blinds in the living room",
    "bring me the red cup from the kitchen table",
)
MAX_TOKENS = 64
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 15


@click.command("demo", short_help="Show a server and a client at work.")
@click.option("--prompt", multiple=True, metavar="TEXT", help="Ask this instead; may be repeated.")
@json_option
@service_options
def demo(*, prompt: tuple[str, ...], as_json: bool, service: ServiceOptions) -> None:
    """
    Start a server, ask it a few things over gRPC, and shut it down.

    The server is `edgephi serve` as a process of its own on a free port of this machine; the client is the one in
    edgephi.client. With the pocket model the answers are commands for a home or a robot, as JSON.

    \b
    Examples:
      edgephi demo
      edgephi demo --prompt "open the garage door"
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    show = _Printer(is_quiet=as_json)
    with _server(service, show) as (process, ready):
        from edgephi.client import Client

        with Client(ready["address"]) as client:
            client.wait_ready(READY_TIMEOUT_S)
            show.step("asking over gRPC")
            answers = [_ask(client, text, show) for text in prompt or PROMPTS]
        show.step("stopping the server with SIGTERM")
        process.send_signal(signal.SIGTERM)
        started_at = time.monotonic()
        status = process.wait(STOP_TIMEOUT_S)
        show.line(f"it exited with status {status} after {format_seconds(time.monotonic() - started_at)}")
    if as_json:
        print_json({"server": ready, "answers": answers, "server_exit_status": status})
    if status != 0:
        raise EngineFailed(f"the server exited with status {status}; expected 0")


class _Printer:
    """Prints the story of the demonstration, or nothing."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet

    def step(self, text: str) -> None:
        """Begin a part of it."""
        self.line(click.style(f"-- {text}", bold=True))

    def line(self, text: str) -> None:
        """Write a line."""
        self.piece(f"{text}\n")

    def piece(self, text: str) -> None:
        """Write a part of a line at once."""
        if not self._is_quiet:
            click.echo(text, nl=False)
            sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class _Log:
    """The server's log in a file that vanishes with it."""

    file: IO[str]

    def tail(self) -> str:
        """Return its last lines."""
        self.file.seek(0)
        return "".join(self.file.readlines()[-LOG_TAIL_LINES:])


@contextlib.contextmanager
def _server(service: ServiceOptions, show: _Printer) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run ``edgephi serve`` in a process of its own for the block; yield it and what it said when it was ready."""
    command = [sys.executable, "-m", "edgephi.cli.main", "serve", "--port", "0", "--json", *_arguments(service)]
    show.step("starting: edgephi serve --port 0 " + " ".join(_arguments(service)))
    started_at = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        log = _Log(file)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)  # noqa: S603 - ourselves
        try:
            assert process.stdout is not None
            with ProgressLine("the server is loading the model"):
                line = process.stdout.readline()
            if not line:
                raise EngineFailed(f"the server ended with status {process.wait()} before it was ready:\n{log.tail()}")
            ready: dict[str, Any] = json.loads(line)
            computing = ready["level"] or "fake engine"
            show.line(
                f"ready after {format_seconds(time.monotonic() - started_at)}: {ready['model']} on "
                f"{ready['address']}, process {ready['pid']}, context {ready['context_tokens']} tokens, {computing}"
            )
            yield process, ready
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _arguments(service: ServiceOptions) -> list[str]:
    """Return the options of ``edgephi serve`` that load what the demonstration was asked to load."""
    arguments = ["--model", service.model, "--engine", service.engine.value]
    for name, value in (("target", service.level), ("kv-tokens", service.kv_tokens), ("threads", service.threads)):
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def _ask(client: Client, prompt: str, show: _Printer) -> dict[str, Any]:
    """Stream one answer and say how fast it came."""
    show.line(f"you:   {prompt}")
    show.piece("model: ")
    pieces: list[str] = []
    started_at = time.monotonic()
    first_piece_s: float | None = None
    stream = client.chat(prompt, max_tokens=MAX_TOKENS)
    for piece in stream:
        if first_piece_s is None:
            first_piece_s = time.monotonic() - started_at
        pieces.append(piece)
        show.piece(piece)
    final = stream.final
    assert final is not None  # the stream raises when it ends without one
    speed = final.timings.decode_tokens_per_s(final.usage)
    parts = [f"{final.usage.output_tokens} tokens"]
    if first_piece_s is not None:
        parts.append(f"first text after {format_seconds(first_piece_s)}")
    if speed is not None:
        parts.append(f"{speed:.0f} tok/s" if speed >= 100 else f"{speed:.1f} tok/s")
    show.line(f"\n       ({', '.join(parts)})")
    return {
        "prompt": prompt,
        "text": "".join(pieces),
        "output_tokens": final.usage.output_tokens,
        "first_text_s": first_piece_s,
        "decode_tokens_per_s": speed,
        "finish_reason": final.reason,
    }
