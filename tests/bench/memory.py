"""
Peak memory of a server under its full load, beside what edgephi.profile.planning.memory predicts.

    python -m tests.bench.memory --model DIR [--model pocket] [--case 1024x2:int8:64 ...] [--no-limit]

A case is context x batch : type of keys and values : prefill chunk. Each has a server of its own (``edgephi serve``)
in a control group whose limit is what the plan says, reserve included and not a byte more, and nothing of the model or
the libraries is in the page cache before. All of its streams are filled to the last token over gRPC, and then short
requests come and go (``tests.bench.memory_load``). The sum of the processes' VmHWM is the most that was ever in RAM.
Then servers that cannot fit are started in groups that are too small and must refuse before they load anything.

Prints Markdown tables; a model that was not compiled is compiled first. Needs root, or with --no-limit nothing. Ends
with status 1 where a prediction is more than 5 % off, a process was killed or an impossible case was not refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench.control_group import NoControlGroup
from tests.bench.memory_load import Case, Measured, measure, refuse

from edgephi.cli.planned_model import find_model_facts
from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import PlanMemory
from edgephi.profile.planning.memory import plan_memory
from edgephi.runtime import RuntimeOptions
from edgephi.runtime.bundles import ensure_bundle

CASES = (
    "256x1:int8:64", "512x1:float16:64", "512x2:float32:64", "512x8:int8:128", "1024x1:int8:64", "1024x2:float16:64",
    "1024x4:int8:64", "2048x1:float16:16", "2048x2:int8:256", "4096x1:int8:64",
)  # fmt: skip
TOLERANCE = 0.05
# Case and part of its need that the group has; the last one's weights alone would not fit.
IMPOSSIBLE = (("512x1:float16:64", 0.99), ("1024x4:int8:64", 0.95), ("2048x2:int8:256", 0.8), ("256x1:int8:64", 0.3))
_MIB = 1 << 20
_COLUMNS = (
    "model | context | at once | pages | chunk | predicted MiB | measured | of it | private | file | tokens held | "
    "answers | tok/s each | limit | group's peak | reclaims | late faults | killed"
)
_REFUSED_COLUMNS = "model | case | needs MiB | group's limit | group's peak | exit status | what it says"


def main() -> None:
    """Measure as the command line says and print the tables."""
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of a server.")
    parser.add_argument("--model", required=True, action="append", help="a model's folder, or pocket; again for more")
    parser.add_argument("--case", type=Case.parse, action="append", help="CONTEXTxBATCH:TYPE:CHUNK; again for more")
    parser.add_argument("--no-limit", action="store_true", help="measure outside of a control group")
    arguments = parser.parse_args()
    try:
        are_right = _compare(arguments.model, arguments.case, is_limited=not arguments.no_limit)
        are_refused = arguments.no_limit or _refuse(arguments.model)
    except NoControlGroup as error:
        sys.exit(f"{error}, or measure without a limit: --no-limit")
    sys.exit(0 if are_right and are_refused else 1)


def _compare(models: list[str], cases: list[Case] | None, *, is_limited: bool) -> bool:
    """Print predicted and measured memory; return whether all is as it should be."""
    _write(*_head(_COLUMNS))
    is_right = True
    for model in models:
        for case in cases or [Case.parse(text) for text in CASES]:
            facts, folder = compiled(model, case)
            if case.context_tokens > facts.context_tokens:
                continue
            predicted = predict(facts, case)
            limit_bytes = predicted.total_bytes if is_limited else None
            measured = measure(model, folder, case, limit_bytes)
            _write(_row(facts, case, predicted, measured, limit_bytes))
            is_near = abs(predicted.peak_bytes / measured.peak - 1) <= TOLERANCE
            is_right &= is_near and (measured.group is None or measured.group.num_oom_kills == 0)
    return is_right


def _refuse(models: list[str]) -> bool:
    """Print how servers end that cannot fit; return whether all of them refused."""
    _write("", *_head(_REFUSED_COLUMNS))
    are_refused = True
    for model in models:
        for text, share in IMPOSSIBLE:
            case = Case.parse(text)
            facts, folder = compiled(model, case)
            if case.context_tokens > facts.context_tokens:
                continue
            needed = predict(facts, case).total_bytes
            refused = refuse(model, folder, case, int(needed * share))
            cells = (facts.name, case, _mib(needed), _mib(int(needed * share)), _mib(refused.peak), refused.status)
            _write(f"| {' | '.join(map(str, cells))} | {refused.text} |")
            are_refused &= refused.status == 1 and "GB are needed with" in refused.text
    return are_refused


def compiled(model: str, case: Case) -> tuple[ModelFacts, Path]:
    """Return what is known of a model that is compiled for a case, and its folder."""
    found = find_model_facts(model, kv_dtype=case.kv_dtype)
    if found.path is None:
        raise SystemExit(f"{model} is not a model's folder")
    ensure_bundle(found.path, RuntimeOptions(kv_dtype=case.kv_dtype.value).bundle_options())
    return find_model_facts(model, kv_dtype=case.kv_dtype).facts, found.path


def predict(facts: ModelFacts, case: Case) -> PlanMemory:
    """Return what a case is to take."""
    return plan_memory(
        facts, kv_dtype=case.kv_dtype, batch=case.batch, context_tokens=case.context_tokens,
        chunk_tokens=case.chunk_tokens, budget_bytes=0,
    )  # fmt: skip


def _row(facts: ModelFacts, case: Case, predicted: PlanMemory, measured: Measured, limit_bytes: int | None) -> str:
    group = measured.group
    cells = (
        f"{facts.name} {facts.quantization}",
        case.context_tokens,
        case.batch,
        case.kv_dtype.value,
        case.chunk_tokens,
        _mib(predicted.peak_bytes),
        _mib(measured.peak),
        f"{predicted.peak_bytes / measured.peak:.3f}",
        _mib(measured.private),
        _mib(measured.file),
        measured.held_tokens,
        measured.num_answers,
        f"{measured.decode_tokens_per_s:.1f}",
        _mib(limit_bytes),
        "-" if group is None else _mib(group.peak),
        "-" if group is None else group.num_reclaims,
        measured.num_late_faults,
        "-" if group is None else group.num_oom_kills,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _head(columns: str) -> tuple[str, str]:
    return f"| {columns} |", "|---" * len(columns.split("|")) + "|"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / _MIB:.0f}"


def _write(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
