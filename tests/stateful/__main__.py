"""
The long form of the state machine: ``python -m tests.stateful --runs 5000 --steps 50``.

Ends with 0 if service and model agree throughout. A failure is printed as the shortest series of steps that shows it.
"""

from __future__ import annotations

import argparse
import sys
import time

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.stateful.machine import ServiceMachine


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.stateful", description=__doc__)
    parser.add_argument("--runs", type=int, default=5000, help="services to start, each with its own series of steps")
    parser.add_argument("--steps", type=int, default=50, help="most steps in a series")
    options = parser.parse_args()
    started = time.monotonic()
    run_state_machine_as_test(
        ServiceMachine,
        settings=settings(
            max_examples=options.runs,
            stateful_step_count=options.steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(
        f"{options.runs} runs of up to {options.steps} steps agree with the model, {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
