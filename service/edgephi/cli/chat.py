"""``edgephi chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from edgephi.cli.answers import Source, Turn, open_source
from edgephi.cli.compose import ServiceOptions
from edgephi.cli.options import Address, answering_options, connect_options, json_option
from edgephi.cli.output import ProgressLine, print_json
from edgephi.cli.run import print_answer
from edgephi.cli.sampling import SamplingChoice, sampling_options
from edgephi.errors import InvalidRequest

HELP = "/reset forgets the conversation, /stats shows the last answer's speed, /quit ends; Ctrl-C stops an answer."


@click.command("chat", short_help="Talk with a model.")
@click.option("-s", "--system", metavar="TEXT", help="What the model is told at the start.")
@json_option
@sampling_options
@answering_options
@connect_options(is_required=False)
def chat(
    *, system: str | None, as_json: bool, service: ServiceOptions, address: Address | None, **sampling: Any
) -> None:
    """
    Talk with a model; each answer takes the whole conversation into account.

    The model runs in this process, or with --connect on a server. /reset forgets the conversation, /stats shows the
    last answer's tokens and speed, /quit or Ctrl-D ends. Ctrl-C stops an answer, not the program. With --json each
    answer is a JSON object on a line of its own; without a terminal each line of standard input is one turn.

    \b
    Examples:
      edgephi chat --system "Answer in one sentence."
      edgephi chat --connect 192.168.1.20:50051
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    choice = SamplingChoice(**sampling)
    with contextlib.ExitStack() as stack:
        with ProgressLine() as progress:
            source = stack.enter_context(open_source(address, service, progress=progress))
        conversation = _Conversation(source, system=system, choice=choice, as_json=as_json)
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and history, where Python has it
            click.echo(f"{source.model}. {HELP}", err=True)
        while (line := _read_line()) is not None:
            if not conversation.handle(line):
                break


class _Conversation:
    """The turns so far and what to do with the next line; lives as long as the command."""

    def __init__(self, source: Source, *, system: str | None, choice: SamplingChoice, as_json: bool) -> None:
        self._source = source
        self._choice = choice
        self._as_json = as_json
        self._opening: list[Turn] = [] if system is None else [("system", system)]
        self._turns = list(self._opening)
        self._stats = "no answer yet"

    def handle(self, line: str) -> bool:
        """Answer a line or obey it; return whether the conversation goes on."""
        match line.strip():
            case "":
                pass
            case "/quit" | "/exit" | "/bye":
                return False
            case "/reset" | "/clear":
                self._turns = list(self._opening)
                click.echo("the conversation is forgotten", err=True)
            case "/stats":
                click.echo(self._stats, err=True)
            case "/help" | "/?":
                click.echo(HELP, err=True)
            case text if text.startswith("/"):
                click.echo(f"unknown command {text.split()[0]}; {HELP}", err=True)
            case text:
                self._answer(text)
        return True

    def _answer(self, text: str) -> None:
        turns: list[Turn] = [*self._turns, ("user", text)]
        try:
            with self._source.chat(turns, self._choice) as answer:
                said = print_answer(answer, is_quiet=self._as_json)
        except InvalidRequest as error:
            # Such as a conversation that has outgrown the context: the person can go on after /reset.
            click.echo(f"error: {error}", err=True)
            click.echo("the turn was dropped; /reset forgets the conversation", err=True)
            return
        self._stats = "the last answer was stopped" if answer.end is None else str(answer.end)
        # A turn the person stopped stays, so that the next one can refer to it; an empty one cannot be sent again.
        if said.text.strip():
            self._turns = [*turns, ("assistant", said.text)]
        if self._as_json:
            ended = {"finish_reason": "cancelled"} if answer.end is None else answer.end.as_json()
            print_json({"text": said.text, **ended})


def _read_line() -> str | None:
    """Return the next line; None at the end of the input. Ctrl-C at the prompt discards what was typed."""
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline()
        return line.decode(errors="replace") or None
    while True:
        try:
            return input(">>> ")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo("\n/quit or Ctrl-D ends", err=True)
