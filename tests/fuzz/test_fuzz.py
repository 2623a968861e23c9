from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fuzz import messages, requests
from tests.fuzz.__main__ import EXIT_NO_ATHERIS

from edgephi.isolation.messages import decode_to_engine, decode_to_front

ROOT = Path(__file__).parents[2]
RUNS, SECONDS = 50_000, 15
PLANTS = [
    pytest.param(target, plant, marks=() if plant in ("bounds", "ends") else pytest.mark.slow)
    for target, module in (("requests", requests), ("messages", messages))
    for plant in module.PLANTS
]

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it has wheels for x86_64 Linux"
)


def fuzz(target: str, work: Path, *arguments: str, python: tuple[str, ...] = ("-m", "tests.fuzz")) -> tuple[int, str]:
    """Run the fuzzer in a process of its own, which libFuzzer ends; return its status and all that it said."""
    command = [sys.executable, *python, target, "--work", str(work), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@needs_atheris
@pytest.mark.parametrize("target", ["requests", "messages"])
def test_a_short_run_finds_nothing(target: str, tmp_path: Path) -> None:
    """Thousands of inputs that reach for new code end as the contract says, within a second each."""
    status, said = fuzz(target, tmp_path, "--runs", str(RUNS), "--seconds", str(SECONDS))
    assert status == 0, said[-4000:]
    num_runs = int(said.partition("stat::number_of_executed_units:")[2].split()[0])
    assert num_runs > 1000, f"{num_runs} runs are no fuzzing"
    assert not list((tmp_path / "findings").iterdir())


@needs_atheris
@pytest.mark.parametrize(("target", "plant"), PLANTS)
def test_a_planted_fault_is_found(target: str, plant: str, tmp_path: Path) -> None:
    """The negative control: with a fault the same fuzzer ends with an error and the input, which shows it again."""
    status, said = fuzz(target, tmp_path, "--seconds", "120", "--seed", "2", "--plant", plant)
    assert status != 0
    (finding,) = (tmp_path / "findings").iterdir()
    assert finding.name in said
    # The fault alone makes it one: without, it is an input like any other.
    status, said = fuzz(target, tmp_path, "--replay", str(finding))
    assert (status, "nothing found" in said) == (0, True), said


def test_without_atheris_it_says_so(tmp_path: Path) -> None:
    """Where atheris is missing the program says what to install, with a status of its own."""
    program = "import sys, runpy; sys.modules['atheris'] = None; runpy.run_module('tests.fuzz', run_name='__main__')"
    status, said = fuzz("messages", tmp_path, python=("-c", program))
    assert status == EXIT_NO_ATHERIS
    assert "pip install" in said


@pytest.mark.parametrize("module", [requests, messages], ids=["requests", "messages"])
def test_every_seed_ends_as_it_must(module: Any) -> None:
    """What the fuzzers begin with is replayed here, so where atheris is missing as well."""
    with contextlib.closing(module):
        seeds = list(module.seeds())
        assert len(seeds) > 20
        for seed in seeds:
            module.run(seed)


@pytest.mark.parametrize("decode", [decode_to_engine, decode_to_front])
def test_a_refusal_does_not_repeat_what_it_refuses(decode: Callable[[bytes], object]) -> None:
    """A frame that is no message is refused in a bounded text, for that goes into the log."""
    for value in ({"type": "A" * 3000}, {"type": "Cancel", "request_id": "a", "reason": "B" * 3000}):
        with pytest.raises(Exception, match="is no message") as refused:
            decode(msgspec.msgpack.encode(value))
        assert len(str(refused.value)) < messages.MAX_REASON_CHARACTERS
