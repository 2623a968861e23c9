"""
Servers that get SIGTERM at a random moment, and what became of each and of its callers.

    python -m tests.lifecycle.sigterm --count 200 [--seed 1]

starts `edgephi serve` so often, one after the other, prints a table and exits with 1 if anything was not as promised: a
new call is refused within 100 ms, no answer is without its end, the process ends within the grace and a second, with
exit status 0 and no process left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgephi.cli.processes import descendants
from edgephi.client import AsyncClient, ClientError, DeadlinePassed

COMMAND = (sys.executable, "-m", "edgephi.cli.main", "serve", "--port", "0", "--json", "--engine", "fake")
REFUSED_S = 0.1
END_S = 1.0
ANSWER_TIMEOUT_S = 60.0
WHOLE, DRAINING, UNAVAILABLE = "whole", "DRAINING", "UNAVAILABLE"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What is done to one server.

    Attributes:
        is_loading: Whether the signal comes before requests are taken.
        num_streams: Answers that are asked for before the signal.
        wait_s: From the first log line, or from the first answer, to the signal.
        grace_s: As in --grace.
        number: The signal.
        is_stuck: Whether the engine's process has stopped in its tracks just before.
    """

    is_loading: bool
    num_streams: int
    wait_s: float
    grace_s: float
    number: signal.Signals = signal.SIGTERM
    is_stuck: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What became of one server.

    Attributes:
        plan: What was done to it.
        status: Its exit status.
        ended_s: From the signal to its end.
        refused_s: How long a call that was made after the signal took to be refused; None while loading.
        answers: How each answer asked for before the signal ended.
        num_below: Processes that it had started.
        num_left: How many of them it left behind.
    """

    plan: Plan
    status: int
    ended_s: float
    refused_s: float | None
    answers: tuple[str, ...]
    num_below: int
    num_left: int

    def broken(self, *, slack_s: float = 0.0) -> list[str]:
        """Return which promises were broken, on a machine that may be late by so many seconds."""
        found = []
        if self.status != 0:
            found.append(f"exit status {self.status}")
        if self.num_left:
            found.append(f"{self.num_left} processes left")
        if self.ended_s > self.plan.grace_s + END_S + slack_s:
            found.append(f"ended after {self.ended_s:.2f} s with a grace of {self.plan.grace_s:g} s")
        if self.refused_s is not None and self.refused_s > REFUSED_S + slack_s:
            found.append(f"refused after {self.refused_s * 1000:.0f} ms")
        # An engine that hangs cannot end its answers; the server then closes their calls without a reason of its own.
        known = (WHOLE, DRAINING, UNAVAILABLE) if self.plan.is_stuck else (WHOLE, DRAINING)
        return found + [f"an answer ended with {end}" for end in self.answers if end not in known]


def random_plan(rng: random.Random) -> Plan:
    """Return a moment: a fifth of them while loading, the others with 0 to 6 answers, of which two run at once."""
    is_loading = rng.random() < 0.2
    return Plan(
        is_loading=is_loading,
        num_streams=0 if is_loading else rng.randint(0, 6),
        wait_s=rng.uniform(0, 0.4 if is_loading else 1.0),
        grace_s=rng.choice((0.0, 0.3, 1.0, 5.0)),
    )


async def run(plan: Plan, model: Path) -> Outcome:
    """Start a server, do to it what is planned, and wait for its end."""
    arguments = ("--model", str(model), "--max-running", "2", "--grace", f"{plan.grace_s:g}")
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True
        )
        refused_s: float | None = None
        answers: tuple[str, ...] = ()
        try:
            if plan.is_loading:
                while os.fstat(log.fileno()).st_size == 0:  # its first line says that it minds signals
                    assert process.returncode is None
                    await asyncio.sleep(0.005)
                await asyncio.sleep(plan.wait_s)
                below = descendants(process.pid)
                sent_at = time.monotonic()
                process.send_signal(plan.number)
                ended_s = await _ended_s(process, sent_at)
            else:
                assert process.stdout is not None
                ready = json.loads(await process.stdout.readline())
                below = descendants(process.pid)
                ended_s, refused_s, answers = await _serve(process, plan, ready["address"], below)
            assert process.returncode is not None
            return Outcome(
                plan=plan,
                status=process.returncode,
                ended_s=ended_s,
                refused_s=refused_s,
                answers=answers,
                num_below=len(below),
                num_left=await _num_left(below),
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def _serve(
    process: asyncio.subprocess.Process, plan: Plan, address: str, below: Sequence[int]
) -> tuple[float, float, tuple[str, ...]]:
    async with AsyncClient(address, can_retry=False) as client, AsyncClient(address, can_retry=False) as late:
        await late.health()  # connected before the signal
        answers = [asyncio.create_task(_answer(client)) for _ in range(plan.num_streams)]
        await asyncio.sleep(plan.wait_s)
        for process_id in below if plan.is_stuck else ():
            os.kill(process_id, signal.SIGSTOP)
        sent_at = time.monotonic()
        process.send_signal(plan.number)
        ended = asyncio.create_task(_ended_s(process, sent_at))
        refused = asyncio.create_task(_refused_s(late))
        return await ended, await refused, tuple([await answer for answer in answers])


async def _answer(client: AsyncClient) -> str:
    """Ask for an answer and return how it ended."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            stream = client.chat("go")
            await stream.read()
    except TimeoutError:
        return "nothing"
    except ClientError as error:
        return error.reason or error.code
    return WHOLE if stream.final is not None else "no final message"


async def _refused_s(client: AsyncClient) -> float:
    """Ask until refused; the signal takes a moment to arrive. Return how long the refusal itself took."""
    while True:
        asked_at = time.monotonic()
        stream = client.chat("go")
        try:
            async with asyncio.timeout(REFUSED_S):
                async for _ in stream.events():
                    break
        except TimeoutError:
            pass  # taken before the signal arrived, and waiting
        except DeadlinePassed:
            raise
        except ClientError:
            return time.monotonic() - asked_at
        stream.cancel()


async def _ended_s(process: asyncio.subprocess.Process, since: float) -> float:
    await process.wait()
    return time.monotonic() - since


async def _num_left(process_ids: Sequence[int]) -> int:
    """Return how many of these processes are still there a second after their server's end."""
    deadline = time.monotonic() + 1.0
    while (num := sum(map(is_running, process_ids))) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return num


def is_running(process_id: int) -> bool:
    """Return whether a process has not ended; one that nobody has asked for its status yet has."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


async def run_all(plans: Sequence[Plan], model: Path, *, at_once: int = 1) -> list[Outcome]:
    """Run every plan, some at once."""
    room = asyncio.Semaphore(at_once)

    async def one(plan: Plan) -> Outcome:
        async with room:
            return await run(plan, model)

    return list(await asyncio.gather(*map(one, plans)))


def table(outcomes: Sequence[Outcome]) -> str:
    """Return what a person wants to know of many outcomes."""
    late = [outcome.ended_s - outcome.plan.grace_s for outcome in outcomes]
    refused = [outcome.refused_s * 1000 for outcome in outcomes if outcome.refused_s is not None]
    ends = Counter(end for outcome in outcomes for end in outcome.answers)
    rows = [
        ("signals", f"{len(outcomes)}, {sum(outcome.plan.is_loading for outcome in outcomes)} of them while loading"),
        ("answers under way", f"{sum(ends.values())}: {', '.join(f'{n} {end}' for end, n in sorted(ends.items()))}"),
        ("new call refused after", f"{statistics.median(refused):.1f} ms median, {max(refused):.1f} ms at most"),
        ("end after the grace", f"{max(late):.2f} s at most"),
        ("exit status 0", f"{sum(outcome.status == 0 for outcome in outcomes)}"),
        ("processes left behind", f"{sum(outcome.num_left for outcome in outcomes)}"),
    ]
    return "\n".join(f"{name:<24}{value}" for name, value in rows)


def main() -> int:
    """Run the command that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    from edgephi.artifact.synth import synthesize

    with tempfile.TemporaryDirectory() as folder:
        model = synthesize("phi3-tiny", Path(folder) / "tiny")
        outcomes = asyncio.run(run_all([random_plan(rng) for _ in range(options.count)], model))
    print(table(outcomes))
    broken = [(outcome, promise) for outcome in outcomes for promise in outcome.broken()]
    for outcome, promise in broken:
        print(f"broken: {promise} ({outcome.plan})")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
