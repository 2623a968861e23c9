"""
Peak memory of a server under its full load, beside what edgephi.profile.memory predicts.

    python -m tests.bench.memory --model DIR [--case 1024x2:int8:64 ...]

A case is context x batch : type of keys and values : prefill chunk. Each has a server of its own (``edgephi serve``).
All of its streams are filled to the last token over gRPC, and then short requests come and go. VmHWM of the server is
the most that was ever in RAM. Prints a Markdown table; a model that was not compiled is compiled first.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgephi.cli.planned_model import find_model_facts
from edgephi.client import Client
from edgephi.profile.kernelfile import parse_fields, parse_kib, read_text
from edgephi.profile.memory import plan_memory
from edgephi.profile.plan import KvDtype, PlanMemory
from edgephi.runtime import RuntimeOptions
from edgephi.runtime.bundles import ensure_bundle

CASES = (
    "256x1:int8:64", "1024x1:int8:64", "1024x4:int8:64", "2048x2:int8:256", "4096x1:int8:64", "512x8:int8:128",
    "512x1:float16:64", "1024x2:float16:64", "2048x1:float16:16",
)  # fmt: skip
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
    """Memory of a server in bytes: its peak, and at the end its own and that backed by files."""

    peak: int
    private: int
    file: int


def main() -> None:
    """Measure as the command line says and print the table."""
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of a server.")
    parser.add_argument("--model", required=True, help="a model's folder, or pocket")
    parser.add_argument("--case", type=Case.parse, action="append", help="CONTEXTxBATCH:TYPE:CHUNK")
    arguments = parser.parse_args()
    sys.stdout.write(
        "| model | context | at once | pages | chunk | predicted MiB | measured | of it | private | file |\n"
    )
    sys.stdout.write("|---|---|---|---|---|---|---|---|---|---|\n")
    for case in arguments.case or [Case.parse(text) for text in CASES]:
        found = find_model_facts(arguments.model, kv_dtype=case.kv_dtype)
        if found.path is None:
            parser.error(f"{arguments.model} is not a model's folder")
        ensure_bundle(found.path, RuntimeOptions(kv_dtype=case.kv_dtype.value).bundle_options())
        facts = find_model_facts(arguments.model, kv_dtype=case.kv_dtype).facts
        predicted = plan_memory(
            facts, kv_dtype=case.kv_dtype, batch=case.batch, context_tokens=case.context_tokens,
            chunk_tokens=case.chunk_tokens, budget_bytes=0,
        )  # fmt: skip
        measured = measure(arguments.model, case)
        sys.stdout.write(_row(facts.quantization, case, predicted, measured))
        sys.stdout.flush()


def measure(model: str, case: Case) -> Measured:
    """Start a server, fill it and read its memory."""
    with _server(model, case) as (pid, address), Client(address) as client:
        rng = random.Random(7)
        prompts = [_prompt(client, rng, case.context_tokens - OUTPUT_TOKENS) for _ in range(case.batch)]
        with ThreadPoolExecutor(case.batch) as executor:
            list(executor.map(lambda prompt: _answer(client, prompt, OUTPUT_TOKENS), prompts))
            shorter = [_prompt(client, rng, min(100, case.context_tokens // 2)) for _ in range(SHORT_REQUESTS)]
            list(executor.map(lambda prompt: _answer(client, prompt, 8), shorter))
        fields = parse_fields(read_text(Path(f"/proc/{pid}/status")) or "")
        numbers = [parse_kib(fields.get(name)) for name in ("VmHWM", "RssAnon", "RssFile")]
        assert all(number is not None for number in numbers), "the kernel does not tell"
        return Measured(*(number or 0 for number in numbers))


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


@contextmanager
def _server(model: str, case: Case) -> Iterator[tuple[int, str]]:
    """Run a server for a case; yield its process id and address."""
    command = [
        sys.executable, "-m", "edgephi.cli.main", "serve", "--json", "--port", "0", "--model", model,
        "--kv-tokens", str(case.context_tokens * case.batch), "--max-running", str(case.batch),
        "--prefill-chunk", str(case.chunk_tokens), "--kv-dtype", case.kv_dtype.value,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield int(ready["pid"]), ready["address"]
    finally:
        process.terminate()
        process.wait(60)


def _row(quantization: str, case: Case, predicted: PlanMemory, measured: Measured) -> str:
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
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


if __name__ == "__main__":
    main()
