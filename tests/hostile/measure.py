"""
Runs an attack beside a good client and tells what it did: ``python -m tests.hostile.measure [--seconds 60]``.

The server, the attacker and the good client are three processes. The attacker is given the lowest priority, because it
stands for another machine, whose processor is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.hostile.attacks import ATTACKS

from edgephi.v1 import generation_pb2, generation_service_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

ROOT = Path(__file__).parents[2]
RECOVERY_S = 10.0
_CALL_TIMEOUT_S = 20.0


class Victim:
    """
    A server in a process of its own, from :meth:`__init__` to :meth:`close`.

    Args:
        without: Options of gRPC to leave at their defaults.
    """

    def __init__(self, without: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "tests.hostile.victim", "--without", *without]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.port = int(self._read()["port"])

    def state(self) -> dict[str, float]:
        """Return how the process is; see ``tests.hostile.victim``."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def settled(self, like: dict[str, float], names: Sequence[str] = ("tasks", "threads", "fds")) -> dict[str, float]:
        """Wait until no more of some things are there than before, or until the time is over; return the state."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            state = self.state()
            if all(state[name] <= like[name] for name in names) or time.monotonic() > deadline:
                return state
            time.sleep(0.1)

    def close(self) -> None:
        """Stop the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server has ended with status {self._process.wait(5)}"
        values: dict[str, float] = json.loads(line)
        return values


@dataclass
class Experience:
    """What a good client saw: seconds until the end of each answer and each health check, and every failure."""

    answers_s: list[float] = field(default_factory=list)
    checks_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def good_client(port: int) -> Iterator[Experience]:
    """Ask for short answers and for health, one after the other, until the block ends."""
    seen = Experience()
    is_over = threading.Event()
    options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
    chat, check = GenerationServiceStub(channel), health_pb2_grpc.HealthStub(channel)
    request = generation_service_pb2.ChatRequest()
    request.messages.add(role=generation_pb2.ROLE_USER, content="go forward")
    request.sampling.max_tokens = 2

    def ask() -> None:
        while not is_over.is_set():
            try:
                started = time.monotonic()
                *_, last = chat.Chat(request, timeout=_CALL_TIMEOUT_S)
                assert last.HasField("final")
                answered = time.monotonic()
                check.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_TIMEOUT_S)
                seen.answers_s.append(answered - started)
                seen.checks_s.append(time.monotonic() - answered)
            except grpc.RpcError as error:
                seen.failures.append(str(error))

    thread = threading.Thread(target=ask, name="good-client")
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()
        channel.close()


@dataclass(frozen=True)
class Outcome:
    """What an attack did: its count, what the good client saw, and the server before, during and after it."""

    count: int
    good: Experience
    before: dict[str, float]
    after: dict[str, float]

    @property
    def grown_bytes(self) -> float:
        """Memory the server had at most, less what it had before."""
        return self.after["peak_bytes"] - self.before["rss_bytes"]


def run_attack(victim: Victim, name: str, seconds: float) -> Outcome:
    """Attack a server for some seconds, with a good client beside it from before the attack until after it."""
    before = victim.state()
    with good_client(victim.port) as good:
        command = ["nice", "-n", "19", sys.executable, "-m", "tests.hostile.attacks", name, str(victim.port)]
        done = subprocess.run([*command, str(seconds)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        num_answers = len(good.answers_s)
        while len(good.answers_s) + len(good.failures) <= num_answers:
            time.sleep(0.01)
    return Outcome(int(done.stdout), good, before, victim.settled(before))


def main() -> None:
    """Run every attack and print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    arguments = parser.parse_args()
    victim = Victim()
    with good_client(victim.port) as quiet:
        time.sleep(min(arguments.seconds, 10.0))
    rows = [
        "| attack | times a second | good answers | failed | answer p99, ms | health p99, ms | memory grown by, MB |",
        "|---|---|---|---|---|---|---|",
        _row("none", 0, quiet, 0.0),
    ]
    sys.stdout.write("\n".join(rows) + "\n")
    victim.close()
    for name in arguments.attacks:
        victim = Victim()
        with good_client(victim.port):
            time.sleep(1.0)
        outcome = run_attack(victim, name, arguments.seconds)
        sys.stdout.write(_row(name, outcome.count / arguments.seconds, outcome.good, outcome.grown_bytes / 1e6) + "\n")
        sys.stdout.flush()
        victim.close()


def _row(name: str, rate: float, seen: Experience, grown_mb: float) -> str:
    answers, checks = (statistics.quantiles(times, n=100)[98] * 1000 for times in (seen.answers_s, seen.checks_s))
    cells = (f"{rate:,.0f}", len(seen.answers_s), len(seen.failures), f"{answers:.0f}", f"{checks:.0f}")
    return f"| {name} | " + " | ".join(str(cell) for cell in cells) + f" | {grown_mb:.1f} |"


if __name__ == "__main__":
    main()
