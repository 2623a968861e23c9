"""
Coverage-guided fuzzing: ``python -m tests.fuzz requests --runs 1000000`` or ``... messages --seconds 600``.

Needs atheris, which libFuzzer is in; ``--replay FILE ...`` does not. Ends with 0 if nothing was found; what was found
is written to a file and can be replayed. Inputs that reached new code are kept for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TARGETS = ("requests", "messages")
WORK = Path(__file__).parents[2] / "build" / "fuzz"
EXIT_NO_ATHERIS = 3
SLICE_RUNS = 250_000
"""Inputs for one process: the fuzzer, not what it runs, grows by a kilobyte with each."""


def main() -> int:
    """Parse, replay or fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=-1, help="inputs to try; without end by default")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0 never")
    parser.add_argument("--max-len", type=int, default=4096, help="longest input in bytes")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0 draws one")
    parser.add_argument("--work", type=Path, help="folder for inputs and findings; build/fuzz/TARGET by default")
    parser.add_argument("--plant", help="a fault to plant, which must be found")
    parser.add_argument("--replay", type=Path, nargs="+", help="run these inputs, without atheris")
    options = parser.parse_args()
    name = f"tests.fuzz.{options.target}"
    if options.replay:
        return _replay(importlib.import_module(name), options.replay)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install --group dev (it has wheels for x86_64 Linux)", file=sys.stderr)
        return EXIT_NO_ATHERIS
    if (options.runs < 0 or options.runs > SLICE_RUNS) and options.plant is None:
        return _in_slices(options)
    import atheris

    with atheris.instrument_imports(include=["edgephi"]):
        target: Any = importlib.import_module(name)
    if options.plant is not None:
        target.PLANTS[options.plant]()
    work: Path = options.work or WORK / options.target
    corpus, findings = work / "corpus", work / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-max_total_time={options.seconds}",
        f"-max_len={options.max_len}",
        f"-seed={options.seed}",
        f"-artifact_prefix={findings}/",
        # Of the wall clock; the target itself counts its processor time.
        "-timeout=30",
        # Valid messages are long; without this they would hardly be changed in a short run.
        "-len_control=0",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()  # ends the process
    return 0


def _in_slices(options: argparse.Namespace) -> int:
    """Fuzz in one process after another, which share the inputs that they keep, until the runs or the time are over."""
    started, num_done = time.monotonic(), 0
    while True:
        num_runs = SLICE_RUNS if options.runs < 0 else min(SLICE_RUNS, options.runs - num_done)
        left_s = max(1, options.seconds - int(time.monotonic() - started)) if options.seconds else 0
        limits = ["--runs", str(num_runs), "--seconds", str(left_s), "--max-len", str(options.max_len)]
        work = [] if options.work is None else ["--work", str(options.work)]
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", options.target, *limits, *work], check=False)
        if done.returncode:
            return done.returncode
        num_done += num_runs
        is_late = options.seconds and time.monotonic() - started >= options.seconds - 1
        if is_late or num_done == options.runs:
            return 0


def _replay(target: Any, files: list[Path]) -> int:
    for file in files:
        target.run(file.read_bytes())
        print(f"{file}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
