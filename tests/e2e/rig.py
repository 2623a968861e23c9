"""A front in a process of its own (tests/e2e/front.py), callers, and a probe of its health meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.bench.control_group import MemoryGroup
from tests.e2e.front import FrontOptions

from edgephi.cli.processes import descendants
from edgephi.client.errors import EndedCall, error_of
from edgephi.v1 import generation_pb2, sampling_pb2
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
PROBE_INTERVAL_S = 0.02
# Short times instead of long tests; deaths far apart count as the first, so that the next start is at once.
QUICK: dict[str, float] = {
    "heartbeat_s": 0.1,
    "max_silence_s": 1.5,
    "min_step_s": 1.5,
    "max_deaths": 10_000,
    "deaths_within_s": 0.1,
}
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


class FrontLostError(Exception):
    """The front itself has ended."""


@dataclass(frozen=True)
class End:
    """
    How a call ended.

    Attributes:
        code: As gRPC names it; ``NO_FINAL`` for a stream that ended well without its last message.
        reason: Of the server's ErrorInfo, if there is one.
        at: When, in seconds of the monotonic clock.
    """

    code: str
    reason: str | None
    at: float


class Asked:
    """One chat on a thread of its own, from construction to its only end."""

    def __init__(self, stub: GenerationServiceStub, text: str, max_tokens: int) -> None:
        self.has_begun = threading.Event()  # or is over
        self.is_over = threading.Event()
        self._end: End | None = None
        message = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=text)
        sampling = sampling_pb2.SamplingParams(max_tokens=max_tokens)
        request = pb2.ChatRequest(messages=[message], sampling=sampling)
        self._thread = threading.Thread(target=self._ask, args=(stub, request), name="caller")
        self._thread.start()

    def end(self) -> End:
        """Wait for the end, which comes at the latest with the deadline."""
        self._thread.join()
        assert self._end is not None
        return self._end

    def _ask(self, stub: GenerationServiceStub, request: pb2.ChatRequest) -> None:
        code, reason, last = "OK", None, ""
        try:
            for response in stub.Chat(request, timeout=WAIT_S):
                last = response.WhichOneof("event") or ""
                if last == "delta":
                    self.has_begun.set()
            if last != "final":
                code = "NO_FINAL"
        except grpc.RpcError as error:
            told = error_of(cast("EndedCall", error))  # every error of a call is a call as well
            code, reason = told.code, told.reason
        self._end = End(code, reason, time.monotonic())
        self.has_begun.set()
        self.is_over.set()


@dataclass
class Health:
    """What a probe of liveness saw: seconds of each check, and those that were not SERVING."""

    durations: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99_s(self) -> float:
        """Duration that one check of a hundred exceeds."""
        return sorted(self.durations)[int(0.99 * len(self.durations))]


class Front:
    """A running front; :func:`serving` makes and ends it."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, str | int], log: IO[str]) -> None:
        self.process = process
        self.address = str(ready["address"])
        self._url = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
        self._channel = grpc.insecure_channel(self.address, _OPTIONS)
        self._stub = GenerationServiceStub(self._channel)
        self._log = log

    def ask(self, text: str, max_tokens: int = 4) -> Asked:
        """Begin a chat."""
        return Asked(self._stub, text, max_tokens)

    def chat(self, text: str, max_tokens: int = 4) -> End:
        """Chat to the end."""
        return self.ask(text, max_tokens).end()

    def recover(self, text: str = "good morning") -> float:
        """
        Ask until there is an answer; return how long that took. Refusals must say that a retry may help.

        Raises:
            FrontLostError: If there is nobody to ask any more.
        """
        began_at = time.monotonic()
        while (end := self.chat(text)).code != "OK":
            if not self.is_alive:
                raise FrontLostError(f"the front has ended with status {self.process.poll()}")
            assert end.code == "UNAVAILABLE", (end, self.log())
            assert time.monotonic() - began_at < WAIT_S, self.log()
            time.sleep(0.01)  # as a client does between two tries
        return end.at - began_at

    def metric(self, name: str) -> float:
        """Return the sum of a metric's series."""
        page = urllib.request.urlopen(self._url, timeout=WAIT_S).read().decode()
        rows = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return sum(float(value) for series, _, value in rows if series.partition("{")[0] == name)

    @property
    def num_deaths(self) -> int:
        """Deaths of the engine."""
        return int(self.metric("edgephi_engine_deaths_total"))

    @property
    def engine_pid(self) -> int:
        """Process id of the engine at present."""
        (pid,) = descendants(self.process.pid)
        return pid

    @property
    def is_alive(self) -> bool:
        """Whether the front itself still runs."""
        return self.process.poll() is None

    def log(self) -> str:
        """Everything it has logged so far."""
        self._log.seek(0)
        return self._log.read()

    @contextlib.contextmanager
    def probed(self) -> Iterator[Health]:
        """Ask for its liveness fifty times a second during the block."""
        seen, is_over = Health(), threading.Event()
        thread = threading.Thread(target=self._probe, args=(seen, is_over), name="prober")
        thread.start()
        try:
            yield seen
        finally:
            is_over.set()
            thread.join()

    def _probe(self, seen: Health, is_over: threading.Event) -> None:
        with grpc.insecure_channel(self.address, _OPTIONS) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not is_over.wait(PROBE_INTERVAL_S):
                began_at = time.monotonic()
                try:
                    response = stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10)
                except grpc.RpcError as error:
                    seen.failures.append(str(error))
                    continue
                seen.durations.append(time.monotonic() - began_at)
                if response.status != health_pb2.HealthCheckResponse.SERVING:
                    seen.failures.append(f"status {response.status}")

    def close(self) -> None:
        """Close the connection; the process is ended by whoever started it."""
        self._channel.close()


@contextlib.contextmanager
def serving(options: FrontOptions, group: MemoryGroup | None = None) -> Iterator[Front]:
    """Run a front for the block, with its engine in a control group if one is given."""
    command = [sys.executable, "-m", "tests.e2e.front", msgspec.json.encode(options).decode()]
    if group is not None:  # it enters before it takes any memory
        command = ["/bin/sh", "-c", f'echo $$ > "{group.members}" && exec "$@"', "sh", *command]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            assert line, log.read()
            front = Front(process, json.loads(line), log)
            try:
                yield front
            finally:
                front.close()
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_S)
