"""
A plan as a person reads it: the answer first, then the choice, its speed, its memory, what would help, what to type.

Owns words and layout. Knows no option and prints nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import click

from edgephi.cli.curve import CurvePoint, curve_of
from edgephi.cli.planned_model import PHI3_MINI, PULLED_QUANTIZATION
from edgephi.cli.planning import Planned, PlanningOptions
from edgephi.cli.plot import Glyphs, format_speed, plot_lines
from edgephi.profile.plan import PROMPT_TOKENS, BindingLimit, Plan, PlanKind, PlanMemory, PredictedSpeed, SpeedRange

_INDENT = "  "
_LABEL = 16
_LEFT = 36
_MIN_WIDTH = 60
# Narrower than this, choice and speed stand one below the other.
_TWO_COLUMNS_WIDTH = 80
_NEW_FOLDER = "DIR"


def plan_lines(planned: Planned, *, width: int, glyphs: Glyphs) -> list[str]:
    """
    Return a plan as lines of text, with colours.

    Args:
        planned: What to tell.
        width: Most columns of a line, at least 60.
        glyphs: Characters to draw with.
    """
    width = max(width, _MIN_WIDTH)
    plan = planned.plan
    color = "green" if _is_certain(planned) else "yellow" if _fits(plan.memory) else "red"
    return [
        *(click.style(line, fg=color, bold=True) for line in textwrap.wrap(headline(planned), width)),
        "",
        *_choice_and_speed(planned, width),
        "",
        *plot_lines(curve_of(planned), width=width, glyphs=glyphs),
        *_legend(planned, width, glyphs),
        "",
        *_memory_lines(planned, width, glyphs),
        "",
        *_paragraphs(_explanations(planned), width),
        "",
        *_remedies(plan, width),
        *_next(planned),
    ]


def headline(planned: Planned) -> str:
    """Return the answer in one sentence."""
    plan, speed = planned.plan, _predicted(planned.plan)
    device = f"this machine ({plan.device})" if planned.is_this_machine else str(plan.device)
    memory = plan.memory
    if not _fits(memory):
        short = memory.total_bytes - (memory.budget_bytes or 0)
        return (
            f"{device} has too little memory for {plan.model}: {_gb(memory.total_bytes)} with {plan.context_tokens} "
            f"tokens of context, {_gb(memory.budget_bytes or 0)} may be used: {_gb(short)} short."
        )
    tokens_per_s = format_speed(speed.each_full_tokens_per_s or 0.0)
    wanted, between = f"{plan.floor_tokens_per_s:g} tok/s with {plan.model}", _between(planned)
    if not plan.feasible:
        about = "about " if between else ""
        each = f" for each of {plan.max_running} requests" if plan.max_running > 1 else ""
        return f"{device} cannot keep {wanted}: {about}{tokens_per_s}{each} at {plan.context_tokens} tokens{between}."
    keeps = "keeps" if _is_certain(planned) else "should keep"
    requests = "1 request" if plan.max_running == 1 else f"{plan.max_running} requests at once"
    each = "" if plan.max_running == 1 else " each"
    return (
        f"{device} {keeps} {wanted}: {plan.context_tokens} tokens of context, {requests}, "
        f"{tokens_per_s} tok/s{each}{between}."
    )


def _is_certain(planned: Planned) -> bool:
    """Whether the floor is kept even at the low end of the estimate."""
    plan = planned.plan
    return bool(plan.feasible) and _curve_point(planned).low_tokens_per_s >= (plan.floor_tokens_per_s or 0.0)


def _between(planned: Planned) -> str:
    """Return the range of the speed with a full context where it is an estimate."""
    if planned.basis.bounds is None:
        return ""
    point = _curve_point(planned)
    return f" (between {format_speed(point.low_tokens_per_s)} and {format_speed(point.high_tokens_per_s)})"


def _curve_point(planned: Planned) -> CurvePoint:
    """Return what is expected with a full context."""
    return next(point for point in curve_of(planned).points if point.context_tokens == planned.plan.context_tokens)


def _choice_and_speed(planned: Planned, width: int) -> Iterator[str]:
    """Yield two columns: what was chosen, and what is expected of it."""
    plan, speed = planned.plan, _predicted(planned.plan)
    choice = [
        ("Context", f"{plan.context_tokens} tokens"),
        ("At once", "1 request" if plan.max_running == 1 else f"{plan.max_running} requests"),
        ("Prompt chunk", _chunk(plan)),
        ("Keys and values", "-" if plan.kv_dtype is None else plan.kv_dtype.value),
        ("Threads", _threads(plan)),
        ("Weights", plan.quantization or "-"),
    ]
    each = "" if plan.max_running == 1 else " each"
    expected = [
        ("Empty context", _speed(speed.each_empty_tokens_per_s, each)),
        ("Full context", _speed(speed.each_full_tokens_per_s, each)),
        ("Beside a prompt", _speed(speed.each_mixed_tokens_per_s, each)),
        ("Alone", _alone(speed) if plan.max_running > 1 else None),
        ("Prompts", _speed(speed.prefill_tokens_per_s, "")),
        ("First token", _first_token(plan, speed)),
        ("Memory read at", None if speed.bandwidth_gbps is None else f"{speed.bandwidth_gbps:.1f} GB/s"),
    ]
    if plan.max_running == 1:
        expected[0] = ("Empty context", _ranged(speed.decode_empty_tokens_per_s, speed.decode_empty_range))
        expected[1] = ("Full context", _ranged(speed.decode_full_tokens_per_s, speed.decode_full_range))
    left = [f"{name:<{_LABEL}}{text}" for name, text in choice]
    right = [f"{name:<{_LABEL}}{text}" for name, text in expected if text is not None]
    if width < _TWO_COLUMNS_WIDTH:
        left, right = left + right, []
    for one, other in itertools.zip_longest(left, right, fillvalue=""):
        yield f"{_INDENT}{one:<{_LEFT}}{other}".rstrip()


def _chunk(plan: Plan) -> str:
    if plan.max_running == 1 or plan.mixed_chunk_tokens == plan.prefill_chunk_tokens:
        return f"{plan.prefill_chunk_tokens} tokens"
    return f"{plan.prefill_chunk_tokens}, {plan.mixed_chunk_tokens} shared"


def _threads(plan: Plan) -> str:
    if plan.num_threads is None:
        return "-"
    return f"{plan.num_threads}" + (f" on CPUs {_cpu_list(plan.cpus)}" if plan.cpus else "")


def _cpu_list(cpus: Sequence[int]) -> str:
    """Return numbers with runs in short, such as ``0-3,6``."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _alone(speed: PredictedSpeed) -> str | None:
    empty, full = speed.decode_empty_tokens_per_s, speed.decode_full_tokens_per_s
    return None if empty is None or full is None else f"{format_speed(empty)} empty, {format_speed(full)} full"


def _first_token(plan: Plan, speed: PredictedSpeed) -> str | None:
    if speed.time_to_first_token_s is None:
        return None
    seconds, prompt = speed.time_to_first_token_s, min(PROMPT_TOKENS, plan.context_tokens)
    duration = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return f"{duration} for {prompt} tokens"


def _speed(value: float | None, each: str) -> str | None:
    return None if value is None else f"{format_speed(value)} tok/s{each}"


def _ranged(value: float | None, between: SpeedRange | None) -> str | None:
    if value is None or between is None:
        return _speed(value, "")
    return f"{format_speed(value)} tok/s ({format_speed(between.low)} to {format_speed(between.high)})"


def _memory_lines(planned: Planned, width: int, glyphs: Glyphs) -> Iterator[str]:
    """Yield where memory goes as a staircase of bars that ends at the budget, or beyond it."""
    memory = planned.plan.memory
    budget = memory.budget_bytes or 0
    left = budget - memory.total_bytes
    items = [
        ("weights", memory.weights_bytes or 0),
        ("keys and values", memory.kv_bytes or 0),
        ("workspace", memory.workspace_bytes or 0),
        ("program", memory.process_bytes or 0),
        ("kept free", memory.reserve_bytes or 0),
    ]
    total = f"Memory: {_gb(memory.total_bytes)} of the {_gb(budget)} that may be used"
    yield from _paragraphs([f"{total} ({planned.basis.budget_reason})"], width)
    columns = width - 34
    largest = max(budget, memory.total_bytes)
    start = 0
    for name, count in items:
        yield f"{_INDENT * 2}{name:<{_LABEL}}{_gb(count):>8}  " + _step(start, count, largest, columns, glyphs.sure)
        start += count
    if left >= 0:
        yield f"{_INDENT * 2}{'left over':<{_LABEL}}{_gb(left):>8}  " + _step(
            start, left, largest, columns, glyphs.possible
        )
    else:
        yield click.style(f"{_INDENT * 2}{'missing':<{_LABEL}}{_gb(-left):>8}", fg="red")


def _step(start: int, count: int, largest: int, columns: int, glyph: str) -> str:
    """Return a bar from *start* on; what is not nothing shows at least one column."""
    first = min(columns - 1, start * columns // max(largest, 1))
    last = min(columns, round((start + count) * columns / max(largest, 1)))
    return (" " * first + glyph * max(last - first, 1 if count else 0)).rstrip()


def _explanations(planned: Planned) -> Iterator[str]:
    """Yield what stops the plan, and where its numbers come from."""
    plan, speed = planned.plan, _predicted(planned.plan)
    if plan.missing is not None:
        yield f"Missing: {plan.missing}."
    else:
        yield f"Limit: {_limit(plan, speed)}"
    yield f"Numbers: {planned.basis.source}."
    if plan.feasible and not _is_certain(planned):
        low = _curve_point(planned).low_tokens_per_s
        yield (
            f"Not certain: at worst it is {low:.1f} tok/s, below the floor of {plan.floor_tokens_per_s:g}; "
            "`edgephi calibrate` on the device measures it."
        )
    board = planned.basis.board
    if board is not None and board.published:
        speeds = ", ".join(f"{s.decode_tokens_per_s:g} tok/s {s.model} ({s.runtime})" for s in board.published)
        yield f"Others published: {speeds}; sources: edgephi devices {board.name}."


def _legend(planned: Planned, width: int, glyphs: Glyphs) -> Iterator[str]:
    if planned.basis.bounds is None:
        return
    text = f"{glyphs.sure} at worst, as the worst published of any board"
    text += f"   {glyphs.likely} expected   {glyphs.possible} memory on paper"
    yield from textwrap.wrap(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _limit(plan: Plan, speed: PredictedSpeed) -> str:
    memory = plan.memory
    left = _gb((memory.budget_bytes or 0) - memory.total_bytes)
    full, floor = speed.each_full_tokens_per_s or 0.0, plan.floor_tokens_per_s or 0.0
    over = f"{format_speed(full - floor)} tok/s above the floor, {left} of memory left over"
    match plan.binding_limit:
        case BindingLimit.MEMORY:
            return f"memory; more context or requests do not fit ({over})."
        case BindingLimit.SPEED:
            return f"speed; more context or requests would fall below {floor:g} tok/s ({over})."
        case BindingLimit.MODEL:
            return f"the model; it has no longer context ({over})."
        case _:
            return f"what was asked for ({over})."


def _remedies(plan: Plan, width: int) -> Iterator[str]:
    if not plan.remedies:
        return
    yield "What would help:" if not plan.feasible else "What would give more:"
    for number, remedy in enumerate(plan.remedies, 1):
        yield from textwrap.wrap(
            f"{remedy.change}: {remedy.effect}",
            width,
            initial_indent=f"{_INDENT}{number}. ",
            subsequent_indent=_INDENT + " " * 3,
            break_on_hyphens=False,
        )
    yield ""


def _next(planned: Planned) -> Iterator[str]:
    for index, command in enumerate(next_commands(planned)):
        yield f"{'Next:' if index == 0 else '':<6}{command}"


def next_commands(planned: Planned) -> tuple[str, ...]:
    """Return what to type after a plan, in order."""
    plan, options = planned.plan, planned.options
    name = shlex.quote(options.model)
    found: list[str] = []
    if not planned.is_this_machine:
        if not plan.feasible and _fits(plan.memory):
            reached = int(10 * (_predicted(plan).each_full_tokens_per_s or 0)) / 10
            return (f"edgephi plan{_flags(options, floor=reached)}" if reached else "edgephi devices",)
        if not _fits(plan.memory):
            needed = plan.memory.total_bytes
            larger = [known.name for known in planned.basis.device.larger if known.memory_budget_bytes >= needed]
            return (f"edgephi plan{_flags(options, device=larger[0])}" if larger else "edgephi devices",)
        return (f"edgephi plan{_flags(options, device='auto')}     # on the device itself",)
    if not planned.model.is_here:
        get = _get_model(planned)
        found.append(get)
        if _NEW_FOLDER in get.split():
            name, options = _NEW_FOLDER, dataclasses.replace(options, model=_NEW_FOLDER, quantization=None)
    if plan.kind is not PlanKind.CALIBRATED:
        found.append(f"edgephi calibrate --model {name}     # measures what is estimated here")
    if _fits(plan.memory):
        slower = "" if plan.feasible else " --accept-slower"
        found.append(f"edgephi serve{_flags(dataclasses.replace(options, quantization=None))}{slower}")
    return tuple(found)


def _get_model(planned: Planned) -> str:
    """Return how a model in the planned quantization comes to this machine."""
    name, quantization = planned.options.model, planned.model.facts.quantization
    if planned.model.path is None and name != PHI3_MINI:
        return f"edgephi model synth {shlex.quote(name)} {_NEW_FOLDER} --quantization {quantization}"
    if planned.model.path is None and quantization == PULLED_QUANTIZATION:
        return f"edgephi model pull {name}"
    has_weights = planned.model.path is None or planned.model.stored_quantization is not None
    checkpoint = "CHECKPOINT" if has_weights else shlex.quote(name)
    return f"edgephi model convert {checkpoint} {_NEW_FOLDER} --quantization {quantization}"


def _flags(options: PlanningOptions, *, floor: float | None = None, device: str | None = None) -> str:
    """Return the options that were not left as they are by default, as flags."""
    defaults = PlanningOptions()
    device = options.device if device is None else device
    values: list[tuple[str, object, object]] = [
        ("--model", options.model, None),
        ("--device", device, defaults.device),
        *(("--device-file", path, None) for path in options.device_files if device != defaults.device),
        ("--memory", options.memory_bytes, None),
        ("--floor", f"{options.floor_tokens_per_s if floor is None else floor:g}", f"{defaults.floor_tokens_per_s:g}"),
        ("--context", options.context_tokens, None),
        ("--batch", options.batch, None),
        ("--prefer", options.prefer.value, defaults.prefer.value),
        ("--kv-dtype", None if options.kv_dtype is None else options.kv_dtype.value, None),
        ("--quantization", options.quantization, None),
        ("--threads", options.threads, None),
    ]
    return "".join(f" {flag} {shlex.quote(str(value))}" for flag, value, default in values if value != default)


def _paragraphs(texts: Iterable[str], width: int) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, width, subsequent_indent=_INDENT * 2, break_on_hyphens=False)


def _predicted(plan: Plan) -> PredictedSpeed:
    return plan.predicted if plan.predicted is not None else PredictedSpeed()


def _fits(memory: PlanMemory) -> bool:
    return memory.total_bytes <= (memory.budget_bytes or 0)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
