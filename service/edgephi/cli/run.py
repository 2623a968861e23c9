"""``edgephi run``: one prompt, one answer."""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import dataclass
from typing import Any

import click

from edgephi.cli.answers import Answer, Source, Turn, open_source
from edgephi.cli.compose import ServiceOptions
from edgephi.cli.failures import EXIT_INTERRUPTED
from edgephi.cli.options import Address, answering_options, connect_options, json_option
from edgephi.cli.output import ProgressLine, print_json, printable
from edgephi.cli.sampling import SamplingChoice, sampling_options
from edgephi.errors import FieldViolation, InvalidRequest


@click.command("run", short_help="Answer one prompt.")
@click.argument("prompt")
@click.option("-s", "--system", metavar="TEXT", help="What the model is told before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities with 0 to 20 alternatives per token.")
@click.option("--stats", is_flag=True, help="Print tokens and speed on standard error at the end.")
@json_option
@sampling_options
@answering_options
@connect_options(is_required=False)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    prompt: str,
    system: str | None,
    raw: bool,
    logprobs: int | None,
    stats: bool,
    as_json: bool,
    service: ServiceOptions,
    address: Address | None,
    **sampling: Any,
) -> None:
    """
    Answer PROMPT and print the answer as it is made. PROMPT "-" is read from standard input.

    The model runs in this process, or with --connect on a server. Ctrl-C ends the answer at its next token and exits
    with status 130.

    \b
    Examples:
      edgephi run "turn on the kitchen light"
      edgephi run --model phi3-mini-4k --stats "Name three uses of a gripper."
      edgephi run --connect 192.168.1.20:50051 - < question.txt
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    if raw and system is not None:
        raise click.UsageError("--system is part of the chat template, which --raw leaves out")
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    text = _read_stdin() if prompt == "-" else prompt
    choice = SamplingChoice(logprobs=logprobs, **sampling)
    with contextlib.ExitStack() as stack:
        with ProgressLine() as progress:
            source = stack.enter_context(open_source(address, service, progress=progress))
        with _ask(source, text, system=system, raw=raw, choice=choice) as answer:
            said = print_answer(answer, is_quiet=as_json)
    if as_json:
        print_json(_as_json(answer, said, model=source.model))
    if stats and answer.end is not None:
        click.echo(str(answer.end), err=True)
    if said.was_interrupted:
        ctx.exit(EXIT_INTERRUPTED)


def _read_stdin() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        description = f"byte {error.start} of standard input is not UTF-8; send text"
        raise InvalidRequest(FieldViolation("prompt", description)) from error


def _ask(source: Source, text: str, *, system: str | None, raw: bool, choice: SamplingChoice) -> Answer:
    if raw:
        return source.complete(text, choice)
    turns: list[Turn] = [] if system is None else [("system", system)]
    return source.chat([*turns, ("user", text)], choice)


@dataclass(frozen=True, slots=True)
class Said:
    """The text of an answer, and whether Ctrl-C ended it."""

    text: str
    was_interrupted: bool


def print_answer(answer: Answer, *, is_quiet: bool = False) -> Said:
    """Print an answer as it comes, with a newline at its end, unless quiet; Ctrl-C ends it."""
    pieces: list[str] = []
    was_interrupted = False
    is_terminal = sys.stdout.isatty()
    with ProgressLine("waiting") as waiting:
        answer.on_prefill = functools.partial(waiting, "reading the prompt")
        try:
            for piece in answer:
                waiting.close()
                pieces.append(piece)
                if not is_quiet:
                    click.echo(printable(piece) if is_terminal else piece, nl=False)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            was_interrupted = True
    text = "".join(pieces)
    if not is_quiet and not text.endswith("\n"):
        click.echo()
    return Said(text, was_interrupted)


def _as_json(answer: Answer, said: Said, *, model: str) -> dict[str, Any]:
    end = answer.end
    result: dict[str, Any] = {"text": said.text}
    result |= {"model": model, "finish_reason": "cancelled"} if end is None else end.as_json()
    if answer.scores:
        result["logprobs"] = [score.as_json() for score in answer.scores]
    return result
