"""
Peak memory of a server under its full load, beside what edgephi.profile.memory predicts.

    python -m tests.bench.memory --model DIR [--case 1024x2:int8:64 ...]

A case is context x batch : type of keys and values : prefill chunk. Each has a server of its own (``edgephi serve``)
in a control group whose limit is what the plan says, reserve included, and nothing of the model is in the page cache
before. All of its streams are filled to the last token over gRPC, and then short requests come and go. The sum of the
processes' VmHWM is the most that was ever in RAM. Then servers that cannot fit are started and must refuse.

Prints Markdown tables; a model that was not compiled is compiled first. Needs root, or with --no-limit nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.control_group import MemoryGroup, drop_cached, memory_group

from edgephi.cli.planned_model import find_model_facts
from edgephi.client import Client
from edgephi.profile.kernelfile import parse_fields, parse_kib, read_text
from edgephi.profile.memory import plan_memory
from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype, PlanMemory
from edgephi.runtime import RuntimeOptions
from edgephi.runtime.bundles import ensure_bundle

CASES = (
    "256x1:int8:64", "1024x1:int8:64", "1024x4:int8:64", "2048x2:int8:256", "4096x1:int8:64", "512x8:int8:128",
    "512x1:float16:64", "1024x2:float16:64", "2048x1:float16:16", "512x2:float32:64",
)  # fmt: skip
IMPOSSIBLE_SHARES = (0.98, 0.9, 0.6, 0.2)
OUTPUT_TOKENS = 48
SHORT_REQUESTS = 12
_MIB = 1 << 20
_CASE = re.compile(r"(\d+)x(\d+):(int8|float16|float32):(\d+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One load: *batch* streams of *context_tokens* with a prefill chunk."""

    context_tokens: int
    batch: int
    kv_dtype: KvDtype
    chunk_tokens: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read ``1024x2:int8:64``."""
        match = _CASE.fullmatch(text)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not CONTEXTxBATCH:TYPE:CHUNK, such as 1024x2:int8:64")
        return cls(int(match[1]), int(match[2]), KvDtype(match[3]), int(match[4]))


@dataclass(frozen=True, slots=True)
class Measured:
    """
    Memory of a server in bytes, all of its processes together, and what its group says.

    Attributes:
        peak: Most that was ever in RAM.
        private: At the end, its own.
        file: At the end, backed by files.
        num_reclaims: How often the limit was met and clean pages were given up; None without a limit.
        num_oom_kills: Processes that were killed; None without a limit.
    """

    peak: int
    private: int
    file: int
    num_reclaims: int | None
    num_oom_kills: int | None


def main() -> None:
    """Measure as the command line says and print the tables."""
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of a server.")
    parser.add_argument("--model", required=True, action="append", help="a model's folder, or pocket; again for more")
    parser.add_argument("--case", type=Case.parse, action="append", help="CONTEXTxBATCH:TYPE:CHUNK")
    parser.add_argument("--no-limit", action="store_true", help="measure outside of a control group")
    arguments = parser.parse_args()
    write = sys.stdout.write
    write("| model | context | at once | pages | chunk | predicted MiB | measured | of it | private | file |")
    write(" limit | reclaims | killed |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
    for model in arguments.model:
        for case in arguments.case or [Case.parse(text) for text in CASES]:
            facts, path = _compiled(model, case)
            predicted = predict(facts, case)
            limit_bytes = None if arguments.no_limit else predicted.total_bytes
            write(_row(facts.quantization, case, predicted, measure(model, path, case, limit_bytes), limit_bytes))
            sys.stdout.flush()
    if arguments.no_limit:
        return
    write("\n| model | case | needs MiB | group's limit | exit status | what it says |\n|---|---|---|---|---|---|\n")
    for model in arguments.model:
        case = Case.parse(CASES[3])
        facts, path = _compiled(model, case)
        total = predict(facts, case).total_bytes
        for share in IMPOSSIBLE_SHARES:
            status, text = refuse(model, path, case, int(total * share))
            numbers = f"{total / _MIB:.0f} | {total * share / _MIB:.0f} | {status}"
            write(f"| {facts.quantization} | {case.context_tokens} x {case.batch} | {numbers} | {text} |\n")
            sys.stdout.flush()


def _compiled(model: str, case: Case) -> tuple[ModelFacts, Path]:
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


def measure(model: str, path: Path, case: Case, limit_bytes: int | None) -> Measured:
    """Start a server within a limit, fill it and read its memory."""
    with ExitStack() as stack:
        group = None
        if limit_bytes is not None:
            drop_cached(path)
            group = stack.enter_context(memory_group(limit_bytes))
        pid, address = stack.enter_context(_server(model, case, group))
        client = stack.enter_context(Client(address))
        rng = random.Random(7)
        prompts = [_prompt(client, rng, case.context_tokens - OUTPUT_TOKENS) for _ in range(case.batch)]
        with ThreadPoolExecutor(case.batch) as executor:
            list(executor.map(lambda prompt: _answer(client, prompt, OUTPUT_TOKENS), prompts))
            shorter = [_prompt(client, rng, min(100, case.context_tokens // 2)) for _ in range(SHORT_REQUESTS)]
            list(executor.map(lambda prompt: _answer(client, prompt, 8), shorter))
        sizes = [_sizes(member) for member in [pid, *_children(pid)]]
        return Measured(
            *(sum(column) for column in zip(*sizes, strict=True)),
            num_reclaims=None if group is None else group.num_reclaims,
            num_oom_kills=None if group is None else group.num_oom_kills,
        )


def refuse(model: str, path: Path, case: Case, limit_bytes: int) -> tuple[int, str]:
    """Start a server in a group that is too small for a case; return its exit status and its message."""
    drop_cached(path)
    with memory_group(limit_bytes) as group:
        command = [
            sys.executable, "-m", "edgephi.cli.main", "serve", "--port", "0", "--model", model,
            "--context", str(case.context_tokens), "--batch", str(case.batch), "--kv-dtype", case.kv_dtype.value,
            "--prefill-chunk", str(case.chunk_tokens), "--accept-slower",
        ]  # fmt: skip
        ended = subprocess.run(_within(group, command), capture_output=True, text=True, timeout=120, check=False)
        assert group.num_oom_kills == 0, "it was killed instead of refusing"
    return ended.returncode, ended.stderr.strip().splitlines()[0]


def _sizes(pid: int) -> tuple[int, int, int]:
    fields = parse_fields(read_text(Path(f"/proc/{pid}/status")) or "")
    peak, private, file = (parse_kib(fields.get(name)) for name in ("VmHWM", "RssAnon", "RssFile"))
    assert peak is not None, "the kernel does not tell"
    assert private is not None
    assert file is not None
    return peak, private, file


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (read_text(task / "children") or "").split():
            found += [int(child), *_children(int(child))]
    return found


def _prompt(client: Client, rng: random.Random, num_tokens: int) -> str:
    """Return random text of at most *num_tokens* tokens, and not many fewer."""
    words = [f"{''.join(rng.choices(string.ascii_lowercase, k=3))}{rng.randrange(100)} " for _ in range(num_tokens)]
    per_word = client.count_tokens(prompt="".join(words[:64])) / min(64, len(words))
    count = int(num_tokens / per_word)
    while True:
        text = "".join(words[:count])
        excess = client.count_tokens(prompt=text) - num_tokens
        if excess <= 0:
            return text
        count -= -(-excess // max(1, int(per_word)))


def _answer(client: Client, prompt: str, max_tokens: int) -> None:
    client.complete(prompt, max_tokens=max_tokens, temperature=0.0).read()


def _within(group: MemoryGroup | None, command: list[str]) -> list[str]:
    """Return the command that runs *command* as a member of a group from its first instruction on."""
    if group is None:
        return command
    return ["/bin/sh", "-c", f'echo $$ > "{group.members}" && exec "$@"', "sh", *command]


@contextmanager
def _server(model: str, case: Case, group: MemoryGroup | None) -> Iterator[tuple[int, str]]:
    """Run a server for a case; yield its process id and address."""
    command = [
        sys.executable, "-m", "edgephi.cli.main", "serve", "--json", "--port", "0", "--model", model,
        "--kv-tokens", str(case.context_tokens * case.batch), "--max-running", str(case.batch),
        "--prefill-chunk", str(case.chunk_tokens), "--kv-dtype", case.kv_dtype.value,
    ]  # fmt: skip
    process = subprocess.Popen(
        _within(group, command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield int(ready["pid"]), ready["address"]
    finally:
        process.terminate()
        process.wait(60)


def _row(quantization: str, case: Case, predicted: PlanMemory, measured: Measured, limit_bytes: int | None) -> str:
    cells = (
        quantization,
        case.context_tokens,
        case.batch,
        case.kv_dtype.value,
        case.chunk_tokens,
        f"{predicted.peak_bytes / _MIB:.0f}",
        f"{measured.peak / _MIB:.0f}",
        f"{predicted.peak_bytes / measured.peak:.3f}",
        f"{measured.private / _MIB:.0f}",
        f"{measured.file / _MIB:.0f}",
        "none" if limit_bytes is None else f"{limit_bytes / _MIB:.0f}",
        measured.num_reclaims,
        measured.num_oom_kills,
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


if __name__ == "__main__":
    main()
