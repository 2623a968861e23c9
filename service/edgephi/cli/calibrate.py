"""``edgephi calibrate``: measure how fast a model's steps are here, for planning, and to notice when they slow down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgephi.cli.compose import POCKET, resolve_model
from edgephi.cli.options import KV_DTYPE, json_option
from edgephi.cli.output import ProgressLine, print_json
from edgephi.profile.plan import KvDtype

if TYPE_CHECKING:
    from pathlib import Path

    from edgephi.profile.calibration import Calibration

FLOOR_TOKENS_PER_S = 12.0
"""The speed whose reach is told: that of `edgephi plan` and `edgephi serve` where none is named."""
MIN_TIME_BUDGET_S = 1.0
STREAMS = (1, 2, 3, 4, 8)
_BAR_WIDTH = 30
_LABEL = 22
_WIDTH = 100


@click.command("calibrate", short_help="Measure this machine for planning.")
@click.option("-m", "--model", default=POCKET, show_default=True, help="Folder or name of a model.")
@click.option("--target", metavar="LEVEL", help="Instruction-set level.  [default: the best of this CPU]")
@click.option(
    "--kv-dtype", type=KV_DTYPE, default=KvDtype.INT8.value, show_default=True, help="Of cached keys and values."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute.  [default: chosen as for serving]")
@click.option(
    "--time-budget",
    type=click.FloatRange(min=MIN_TIME_BUDGET_S),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="To take in all, loading included, compiling not.",
)
@json_option
def calibrate(
    *, model: str, target: str | None, kv_dtype: str, threads: int | None, time_budget: float, as_json: bool
) -> None:
    """
    Measure memory bandwidth, decoding and prompts with the model's own compiled kernels, and keep the result.

    `edgephi plan` and `edgephi serve` rest on it as long as neither the device nor the build changes. It is compared
    with earlier ones of this device and model, and with what the catalogue expects of this board; what is much slower
    is a warning. Other work on the machine disturbs it, which is a warning too. Exits with 0 also with warnings.

    \b
    Examples:
      edgephi calibrate --model phi3-mini-4k
      edgephi calibrate --model phi3-mini-4k --kv-dtype float16 --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    import msgspec

    from edgephi.runtime.calibrate import calibrate_model
    from edgephi.runtime.model import RuntimeOptions

    source = resolve_model(model)
    runtime = RuntimeOptions(level=target, kv_dtype=kv_dtype, threads=threads)
    with ProgressLine() as progress:
        measured = calibrate_model(source.path, runtime, name=source.name, time_budget_s=time_budget, progress=progress)
    calibration, path, warnings = _judge_and_save(measured)
    if as_json:
        print_json(
            {**msgspec.to_builtins(calibration), "warnings": warnings, "path": None if path is None else str(path)}
        )
        return
    for line in report_lines(calibration):
        click.echo(line)
    if path is not None:
        click.echo(f"\nStored in {path}")
    for warning in warnings:
        click.echo(f"{click.style('warning', fg='yellow')}: {warning}", err=True)


def _judge_and_save(measured: Calibration) -> tuple[Calibration, Path | None, list[str]]:
    """Compare a calibration, store it, and return what was stored, where, and the warnings."""
    from edgephi.cli.devices import open_catalogue
    from edgephi.errors import ConfigError
    from edgephi.profile.calibration import find_baseline, save_calibration
    from edgephi.profile.machine.probe import probe
    from edgephi.profile.regressions import compare_with_board, compare_with_earlier
    from edgephi.runtime.calibrate import calibration_dir

    facts, folder = probe(), calibration_dir()
    warnings: list[str] = []
    if measured.conditions.is_noisy:
        warnings.append(
            f"noisy: {'; '.join(measured.conditions.noise)}. Planning prefers a quiet run: stop other work, repeat it"
        )
    baseline = find_baseline(folder, measured)
    slower = () if baseline is None else compare_with_earlier(measured, baseline)
    warnings += slower
    calibration = dataclasses.replace(measured, was_slower=bool(slower))
    try:
        board = open_catalogue().match(facts)
        if board is not None:
            warnings += compare_with_board(calibration, board, facts)
    except ConfigError as error:  # a user's own board with a mistake must not cost the measurement
        warnings.append(str(error))
    path: Path | None = None
    try:
        path = save_calibration(folder, calibration)
    except ConfigError as error:
        warnings.append(f"not stored: {error}")
    return calibration, path, warnings


def report_lines(calibration: Calibration) -> Iterator[str]:
    """Yield the report for people, without warnings."""
    samples = [step.samples for step in calibration.steps]
    times = f"{min(samples)}" if min(samples) == max(samples) else f"{min(samples)} to {max(samples)}"
    yield (
        f"{calibration.model}, {calibration.quantization}, {calibration.kv_dtype.value} keys and values on "
        f"{calibration.device}"
    )
    yield (
        f"{calibration.level}, {_threads(calibration.times.threads)}, TVM {calibration.tvm_version}; "
        f"{len(samples)} kinds of steps timed {times} times in {calibration.total_s:.1f} s, "
        f"{calibration.load_s:.1f} s of it to load"
    )
    yield ""
    yield from _bandwidth_lines(calibration)
    yield ""
    yield from _decode_lines(calibration)
    yield ""
    yield from _prefill_lines(calibration)
    yield ""
    yield click.wrap_text(verdict(calibration), width=_WIDTH)


def verdict(calibration: Calibration) -> str:
    """Return where the usual floor is kept: for how many streams, up to which context."""
    floor, longest = FLOOR_TOKENS_PER_S, _longest_context(calibration)
    alone = [calibration.decode_tokens_per_s(context_tokens=context) for context in (0, longest)]
    if alone[0] < floor:
        return (
            f"{floor:g} tok/s: out of reach here. One stream decodes {alone[0]:.1f} tok/s with an empty context, "
            f"{alone[1]:.1f} behind {longest} tokens."
        )
    whole: str | None = None
    parts = []
    for batch in STREAMS:
        reach, streams = _reach(calibration, batch, longest), f"{batch} stream{'' if batch == 1 else 's'}"
        if reach == longest:
            whole = f"any context up to the {longest} tokens that were measured with {'up to ' * (batch > 1)}{streams}"
        elif reach is not None:
            parts.append(f"up to {reach} tokens with {streams}")
    return f"{floor:g} tok/s for each stream: {', '.join([*filter(None, [whole]), *parts])}."


def _reach(calibration: Calibration, batch: int, longest: int) -> int | None:
    """Return the longest context at which each of *batch* streams keeps the floor; None where none does."""

    def keeps(context: int) -> bool:
        return calibration.decode_tokens_per_s(batch=batch, context_tokens=context) >= FLOOR_TOKENS_PER_S

    if not keeps(0):
        return None
    low, high = 0, longest
    while low < high:  # the speed only falls with the context
        middle = (low + high + 1) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle - 1)
    return low


def _bandwidth_lines(calibration: Calibration) -> Iterator[str]:
    fastest = max(speed for _, speed in calibration.bandwidth)
    yield f"{'Reading the weights':<{_LABEL}}  GB/s"
    for threads, speed in calibration.bandwidth:
        bar = "#" * max(1, round(_BAR_WIDTH * speed / fastest))
        yield f"  {_threads(threads):<{_LABEL - 2}}{speed / 1e9:6.1f}  {bar}"


def _decode_lines(calibration: Calibration) -> Iterator[str]:
    longest = _longest_context(calibration)
    # The longest one ends where the context does: its own token fills it.
    timed = {step.context_tokens for step in calibration.steps if step.sequences == step.rows == 1}
    contexts = [*sorted(timed - {longest - 1}), longest]
    yield _row("Decoding", "tok/s of each stream behind a context of")
    yield _row("", *(f"{context:>8}" for context in contexts))
    measured = {step.sequences for step in calibration.steps if step.rows == 1}
    for batch in sorted(measured):
        speeds = [calibration.decode_tokens_per_s(batch=batch, context_tokens=context) for context in contexts]
        yield _row(f"{batch} stream{'' if batch == 1 else 's'}", *(_against_floor(speed) for speed in speeds))


def _prefill_lines(calibration: Calibration) -> Iterator[str]:
    times, longest = calibration.times, _longest_context(calibration)
    yield _row("Prompts", "tok/s behind a context of")
    contexts = (0, longest // 2)
    yield _row("", *(f"{context:>8}" for context in contexts))
    for chunk in sorted({step.rows for step in calibration.steps if step.rows > 1}):
        speeds = [
            chunk / (times.rows_s(chunk) + chunk * times.seen_tokens(context) * times.prefill_s_per_pair)
            for context in contexts
        ]
        yield _row(f"chunks of {chunk}", *(f"{speed:8.1f}" for speed in speeds))


def _row(label: str, *cells: str) -> str:
    return f"{label if label[:1].isupper() else '  ' + label:<{_LABEL}}{''.join(cells)}".rstrip()


def _against_floor(speed: float) -> str:
    return click.style(f"{speed:8.1f}", fg="green" if speed >= FLOOR_TOKENS_PER_S else "yellow")


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _longest_context(calibration: Calibration) -> int:
    """Return the longest context behind which a step was timed, the step's own tokens included."""
    return max(step.context_tokens + step.rows for step in calibration.steps)
