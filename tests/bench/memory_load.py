"""
A server in a control group with a limit of memory, all that it can be asked to hold at once, and its memory then.

Owns one measurement; edgephi.profile.planning.memory predicts it and ``tests.bench.memory`` compares. The group is
version 1 or 2, whichever limits memory here; only version 1 was ever at hand.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tests.bench.control_group import MemoryGroup, drop_cached, memory_group

from edgephi.client import Client
from edgephi.client.events import FinalInfo
from edgephi.profile.machine.kernelfile import parse_fields, parse_kib, read_text
from edgephi.profile.plan import KvDtype

OUTPUT_TOKENS = 48
SHORT_REQUESTS = 12
_CASE = re.compile(r"(\d+)x(\d+):(int8|float16|float32):(\d+)")
_START_TIMEOUT_S = 120
_MAJOR_FAULTS = 9  # field of /proc/PID/stat, counted from the one after the program's name


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

    def __str__(self) -> str:
        return f"{self.context_tokens}x{self.batch}:{self.kv_dtype.value}:{self.chunk_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReading:
    """
    What a control group says after a load.

    Attributes:
        peak: Most bytes that were ever charged to it, page cache included; None where it does not tell.
        num_reclaims: How often the limit was met and clean pages were given up.
        num_oom_kills: Processes that were killed.
    """

    peak: int | None
    num_reclaims: int
    num_oom_kills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """
    Memory of a server in bytes, all of its processes together, and how its answers went.

    Files that several of its processes have mapped count once for each.

    Attributes:
        peak: Most that was ever in RAM.
        private: At the end, its own.
        file: At the end, backed by files.
        num_late_faults: Pages read from a file again once the contexts were full: weights that the limit drove out.
        held_tokens: Prompt and answer tokens of the streams that ran at once.
        decode_tokens_per_s: Of each of these streams, the mean.
        num_answers: Answers that ended as they should; all of them, or the measurement fails.
        group: What the group counted, or None without a limit.
    """

    peak: int
    private: int
    file: int
    num_late_faults: int
    held_tokens: int
    decode_tokens_per_s: float
    num_answers: int
    group: GroupReading | None


@dataclass(frozen=True, slots=True)
class Refused:
    """How a server that cannot fit ended: exit status, what it said, and the most bytes that its group ever held."""

    status: int
    text: str
    peak: int | None


def measure(model: str, folder: Path, case: Case, limit_bytes: int | None) -> Measured:
    """
    Start a server within a limit, fill every stream to its last token, let short requests follow, and read its memory.

    Raises:
        NoControlGroup: If there is a limit and no group can be made for it.
    """
    with ExitStack() as stack:
        group = None
        if limit_bytes is not None:
            _forget(folder)
            group = stack.enter_context(memory_group(limit_bytes))
        pid, address = stack.enter_context(_server(model, case, group))
        client = stack.enter_context(Client(address))
        rng = random.Random(7)
        prompts = [_prompt(client, rng, case.context_tokens - OUTPUT_TOKENS) for _ in range(case.batch)]
        shorter = [_prompt(client, rng, min(100, case.context_tokens // 2)) for _ in range(SHORT_REQUESTS)]
        with ThreadPoolExecutor(case.batch) as executor:
            full = list(executor.map(lambda prompt: _answer(client, prompt, OUTPUT_TOKENS), prompts))
            faults = _num_major_faults(pid)
            short = list(executor.map(lambda prompt: _answer(client, prompt, 8), shorter))
        sizes = [_sizes(member) for member in _family(pid)]
        peak, private, file = (sum(column) for column in zip(*sizes, strict=True))
        speeds = [speed for end in full if (speed := end.timings.decode_tokens_per_s(end.usage)) is not None]
        return Measured(
            peak=peak,
            private=private,
            file=file,
            num_late_faults=_num_major_faults(pid) - faults,
            held_tokens=sum(end.usage.prompt_tokens + end.usage.output_tokens for end in full),
            decode_tokens_per_s=fmean(speeds) if speeds else 0.0,
            num_answers=len(full) + len(short),
            group=None if group is None else _read(group),
        )


def refuse(model: str, folder: Path, case: Case, limit_bytes: int) -> Refused:
    """Start a server in a group that is too small for a case; it must end by itself before it loads anything."""
    _forget(folder)
    with memory_group(limit_bytes) as group:
        ended = subprocess.run(
            _within(group, _command(model, case)),
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
        reading = _read(group)
    assert reading.num_oom_kills == 0, "it was killed instead of refusing"
    said = next((line for line in ended.stderr.splitlines() if line.startswith("error: ")), ended.stderr[-500:])
    return Refused(ended.returncode, said, reading.peak)


def _forget(folder: Path) -> None:
    """Let the system forget the model and the installed libraries, so that the group is charged for both."""
    drop_cached(folder)
    drop_cached(Path(sysconfig.get_path("purelib")))


def _command(model: str, case: Case) -> list[str]:
    """Return the command that serves a case as an operator asks for it: planned, and refused where it cannot be."""
    return [
        sys.executable, "-m", "edgephi.cli.main", "serve", "--json", "--port", "0", "--model", model,
        "--context", str(case.context_tokens), "--batch", str(case.batch), "--kv-dtype", case.kv_dtype.value,
        "--prefill-chunk", str(case.chunk_tokens), "--accept-slower",
    ]  # fmt: skip


def _within(group: MemoryGroup | None, command: list[str]) -> list[str]:
    """Return the command that runs *command* as a member of a group from its first instruction on."""
    if group is None:
        return command
    return ["/bin/sh", "-c", f'echo $$ > "{group.members}" && exec "$@"', "sh", *command]


@contextmanager
def _server(model: str, case: Case, group: MemoryGroup | None) -> Iterator[tuple[int, str]]:
    """Run a server for a case; yield its process id and address."""
    process = subprocess.Popen(_within(group, _command(model, case)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{model} {case} was not served: {process.stderr.read().decode()}")
        ready = json.loads(line)
        yield int(ready["pid"]), ready["address"]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _read(group: MemoryGroup) -> GroupReading:
    return GroupReading(peak=group.peak_bytes, num_reclaims=group.num_reclaims, num_oom_kills=group.num_oom_kills)


def _sizes(pid: int) -> tuple[int, int, int]:
    fields = parse_fields(read_text(Path(f"/proc/{pid}/status")) or "")
    peak, private, file = (parse_kib(fields.get(name)) for name in ("VmHWM", "RssAnon", "RssFile"))
    assert peak is not None, "the kernel does not tell"
    assert private is not None
    assert file is not None
    return peak, private, file


def _num_major_faults(pid: int) -> int:
    texts = [Path(f"/proc/{member}/stat").read_text() for member in _family(pid)]
    return sum(int(text[text.rindex(")") + 2 :].split()[_MAJOR_FAULTS]) for text in texts)


def _family(pid: int) -> list[int]:
    """Return a process and those that it started, theirs included."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (read_text(task / "children") or "").split():
            found += _family(int(child))
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


def _answer(client: Client, prompt: str, max_tokens: int) -> FinalInfo:
    stream = client.complete(prompt, max_tokens=max_tokens, temperature=0.0)
    stream.read()
    assert stream.final is not None, "a stream without its end is an error of its own"
    assert stream.final.reason in ("length", "stop"), stream.final.reason
    return stream.final
