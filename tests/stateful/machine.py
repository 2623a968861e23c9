"""
Random clients of a whole service, held against a model of it after every step.

Owns the rules and the waiting until service and clients agree. While the gate is shut nothing happens by itself, so
what a rule draws never depends on time and a failure can be shown again.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import grpc
import hypothesis.strategies as st
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.stateful.calls import Call, End, Request, chat, reason_of
from tests.stateful.model import CAPACITY, DRAINING, Model, Phase, answer_to
from tests.stateful.service import MAX_RUNNING, MAX_WAITING, MODEL_ID, Service, tokenizer

from edgephi.server.app import SERVICES
from edgephi.server.tokens import add_token
from edgephi.v1 import device_pb2, device_service_pb2, generation_pb2, generation_service_pb2, model_service_pb2
from edgephi.v1.device_service_pb2_grpc import DeviceServiceStub
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub
from edgephi.v1.model_service_pb2_grpc import ModelServiceStub

CLIENTS = ("arm", "hub")
PREFIXES = ("go", "the robot sees a red box on the table and moves to it", "stop")
WORDS = ("left", "right", "door", "box", "lift", "turn", "the", "table")
INVALID: dict[str, Request] = {
    "no messages": Request(),
    "no role": Request(messages=[generation_pb2.Message(content="go")]),
    "no text": chat(" "),
    "no tokens": chat("go", 0),
    "too long": chat("go", 1000),
}
_TEXT = st.lists(st.sampled_from(WORDS), max_size=12)
_INDEX = st.integers(0, 7)
_CLIENT = st.sampled_from(CLIENTS)


class ServiceMachine(RuleBasedStateMachine):
    """
    A service with few places, and clients that do whatever clients do.

    Attributes:
        patience_s: How long service and clients may take to agree.
        max_waiting: What the service is given; the model has its own.
    """

    patience_s: ClassVar[float] = 20.0
    max_waiting: ClassVar[int] = MAX_WAITING

    def __init__(self) -> None:
        super().__init__()
        self._stopping: threading.Thread | None = None
        self._service: Service
        self._folder = tempfile.TemporaryDirectory()
        self._tokens = Path(self._folder.name) / "tokens" / "tokens.toml"
        self._secrets = {name: add_token(self._tokens, name)[0] for name in CLIENTS}
        self._num_calls = 0
        self._start()

    @rule(prefix=st.sampled_from(PREFIXES), words=_TEXT, max_tokens=st.none() | st.integers(1, 30), client=_CLIENT)
    def chat(self, prefix: str, words: list[str], max_tokens: int | None, client: str) -> None:
        self._chat(prefix, words, max_tokens, None, client)

    @rule(words=_TEXT, stop=st.sampled_from(WORDS), client=_CLIENT)
    def chat_with_stop(self, words: list[str], stop: str, client: str) -> None:
        self._chat("go", words, None, stop, client)

    @rule(client=_CLIENT)
    def flood(self, client: str) -> None:
        num_free = max(0, CAPACITY - len(self.model.live)) if self.model.phase is Phase.READY else 0
        for _ in range(num_free + 2):
            self._chat("go", [], None, None, client)
        assert self.model.phase is not Phase.READY or len(self.model.live) == CAPACITY

    @rule(index=_INDEX, num_parts=st.integers(1, 6))
    def read(self, index: int, num_parts: int) -> None:
        call = self._pick(index)
        if call is not None:
            self._let_pass_until(call[1], call[1].num_parts + num_parts)

    @rule(index=_INDEX)
    def read_to_the_end(self, index: int) -> None:
        call = self._pick(index)
        if call is not None:
            self._let_pass_until(call[1], None)

    @rule(index=_INDEX)
    def cancel(self, index: int) -> None:
        picked = self._pick(index)
        if picked is None:
            return
        name, call = picked
        self.model.cancelled.add(name)
        call.cancel()
        assert call.wait(None, self.patience_s), "a cancelled call has not ended"
        self._until(lambda: name in self._service.engine.cancelled, "the engine is told")
        self._settle()
        assert name not in self.model.live
        self._until(lambda: self._log_of(name) is not None, "its end is logged")
        line = self._log_of(name)
        # Nothing was let pass before the engine was told, so it had no chance to end otherwise.
        assert line is not None
        assert line.get("reason") == "cancelled", f"{name} was cancelled and went on: {line}"

    @rule(words=_TEXT, timeout_ms=st.integers(20, 80), client=_CLIENT)
    def chat_until_deadline(self, words: list[str], timeout_ms: int, client: str) -> None:
        refusal = self.model.refusal()
        _, call = self._begin(" ".join(["go", *words]), None, None, client, timeout_s=timeout_ms / 1e3)
        assert call.wait(None, self.patience_s), "a call has outlived its deadline"
        end = call.end
        assert end is not None
        # The server may be the first to see that it is too late; it then says so with the last message.
        is_late = end.code is grpc.StatusCode.DEADLINE_EXCEEDED or end.finish == "FINISH_REASON_DEADLINE"
        assert end == refusal or is_late, end
        call.join()

    @rule(kind=st.sampled_from(sorted(INVALID)), client=_CLIENT)
    def chat_invalid(self, kind: str, client: str) -> None:
        end = self._refused(INVALID[kind], self._metadata(client))
        # What only the context or a tokenizer decides is looked at after whether anything is taken at all.
        expected = self.model.refusal() if kind == "too long" else None
        assert (end.code is grpc.StatusCode.INVALID_ARGUMENT) if expected is None else (end == expected), end

    @rule()
    def chat_of_nobody(self) -> None:
        end = self._refused(chat("go"), ())
        assert end == End(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), end

    @rule(words=_TEXT, client=_CLIENT)
    def ask(self, words: list[str], client: str) -> None:
        metadata = self._metadata(client)
        text = " ".join(["go", *words])
        count = generation_service_pb2.CountTokensRequest(prompt=text)
        counted = GenerationServiceStub(self._channel).CountTokens(count, metadata=metadata)
        assert counted.tokens == len(tokenizer().encode(text)) + 1
        models = ModelServiceStub(self._channel)
        name = f"models/{MODEL_ID}"
        assert models.GetModel(model_service_pb2.GetModelRequest(name=name), metadata=metadata).model.name == name
        listed = models.ListModels(model_service_pb2.ListModelsRequest(), metadata=metadata).models
        assert [model.name for model in listed] == [name]
        device = DeviceServiceStub(self._channel)
        plan = device.GetPlan(device_service_pb2.GetPlanRequest(), metadata=metadata).plan
        assert plan.max_running == MAX_RUNNING
        watch: Any = device.WatchState(device_service_pb2.WatchStateRequest(), metadata=metadata)
        state: device_pb2.LiveState | None = None
        reason: str | None = None
        try:
            state = next(watch).state
        except grpc.RpcError as error:
            reason = reason_of(error)
        watch.cancel()
        if state is None:
            assert (self.model.phase, reason) == (Phase.DRAINING, "DRAINING")
        else:
            assert self.model.phase is Phase.READY
            assert state.num_running <= MAX_RUNNING
            assert state.num_running + state.num_waiting == len(self.model.live)

    @rule()
    def ask_health(self) -> None:
        stub = health_pb2_grpc.HealthStub(self._channel)
        found = {
            name: stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            == health_pb2.HealthCheckResponse.SERVING
            for name in (*SERVICES, "", "readiness", "liveness")
        }
        is_ready = self.model.phase is Phase.READY
        assert found.pop("liveness")
        # Readiness comes back by itself some time after a refusal, so then either is right.
        if time.monotonic() - self._refused_at > 1.0:
            for name in ("", "readiness"):
                assert found[name] == is_ready or time.monotonic() - self._refused_at < 4.0
        else:
            assert not found[""], "ready while requests are refused"
            assert not found["readiness"], "ready while requests are refused"
        assert all(found[name] == is_ready for name in SERVICES), found

    @rule()
    def drain(self) -> None:
        if self.model.phase is not Phase.READY:
            return
        self.model.phase = Phase.DRAINING
        self._stopping = self._service.stop(60.0)
        self._until(lambda: self._service.server.state.value == "draining", "the server drains")

    @rule(has_grace=st.booleans())
    def restart(self, has_grace: bool) -> None:
        if self.model.phase is Phase.READY:
            self.model.phase, self.model.is_cut = Phase.DRAINING, not has_grace
            self._stopping = self._service.stop(60.0 if has_grace else 0.0)
        self._service.backend.open()
        for call in tuple(self._calls.values()):
            assert call.wait(None, self.patience_s), "a call has outlived its server"
        self._stopped()

    @invariant()
    def service_and_clients_agree(self) -> None:
        if self.model.phase is Phase.STOPPED:
            self._start()
        self._settle()
        for name, call in self._calls.items():
            self.model.check_part(name, call.text)
        assert self._service.backend.max_sequences <= MAX_RUNNING, "more run than may"
        if self.model.phase is Phase.DRAINING and not self._calls:
            self._stopped()
            self._start()

    def teardown(self) -> None:
        try:
            if self.model.phase is not Phase.STOPPED:
                self.restart(has_grace=True)
        finally:
            self._close()
            self._folder.cleanup()

    @staticmethod
    def plant(service: Service) -> None:
        """Do nothing to a service before it is used; negative controls do something."""

    def _start(self) -> None:
        self.model = Model()
        self._calls: dict[str, Call] = {}
        self._refusals: list[str] = []
        self._refused_at = float("-inf")
        self._stopping = None
        self._service = Service(self._tokens, max_waiting=self.max_waiting)
        self._channel = grpc.insecure_channel(self._service.target, [("grpc.enable_retries", 0)])
        self.plant(self._service)

    def _chat(self, prefix: str, words: list[str], max_tokens: int | None, stop: str | None, client: str) -> None:
        """Begin a chat whose text is like no other's; it is refused or goes on."""
        refusal = self.model.refusal()
        text = " ".join([prefix, str(self._num_calls), *words])
        name, call = self._begin(text, max_tokens, stop, client)
        if refusal is None:
            self.model.live[name] = answer_to(text, max_tokens, stop)
            self._calls[name] = call
            self._until(lambda: self._num_live() == len(self.model.live) or call.end is not None, "it is accepted")
            assert call.end is None, f"{name} was refused: {call.end}"
            return
        self._until(lambda: call.end is not None or self._num_live() > len(self.model.live), "it is refused")
        if call.end is None:
            call.join()
            raise AssertionError(f"{name} was accepted; expected {refusal}")
        assert call.end == refusal, f"{name} ended with {call.end}; expected {refusal}"
        if refusal is not DRAINING:
            self._refused_at = time.monotonic()
        self._refusals.append(name)
        call.join()

    def _begin(
        self, text: str, max_tokens: int | None, stop: str | None, client: str, timeout_s: float | None = None
    ) -> tuple[str, Call]:
        request = chat(text, max_tokens)
        if stop is not None:
            request.sampling.stop.append(stop)
        name = f"call-{self._num_calls}"
        self._num_calls += 1
        metadata = (("x-request-id", name), *self._metadata(client))
        return name, Call(self._channel, request, metadata=metadata, timeout_s=timeout_s)

    def _refused(self, request: Request, metadata: tuple[tuple[str, str], ...]) -> End:
        call = Call(self._channel, request, metadata=metadata)
        assert call.wait(None, self.patience_s), "a refusal has not come"
        call.join()
        assert call.end is not None
        return call.end

    def _metadata(self, client: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._secrets[client]}"),)

    def _pick(self, index: int) -> tuple[str, Call] | None:
        calls = list(self._calls.items())
        return calls[index % len(calls)] if calls else None

    def _num_live(self) -> int:
        stats = self._service.engine.stats()
        return stats.running + stats.waiting

    def _log_of(self, name: str) -> MutableMapping[str, Any] | None:
        """Return the line that was logged at the end of a call."""
        lines = self._service.log
        return next(
            (line for line in lines if line["event"] == "request.finished" and line["request_id"] == name), None
        )

    def _let_pass_until(self, call: Call, num_parts: int | None) -> None:
        """Let forwards pass until a call has so many parts, or has ended."""
        deadline = time.monotonic() + self.patience_s
        while not call.wait(num_parts, 0.001):
            self._service.backend.let_pass()
            assert time.monotonic() < deadline, "a call does not go on"

    def _settle(self) -> None:
        """Wait until engine, server and clients agree on what is live; what has ended is held against the model."""

        def agree() -> bool:
            for name in [name for name, call in self._calls.items() if call.end is not None]:
                call = self._calls.pop(name)
                call.join()
                assert call.end is not None
                self.model.ended(name, call.text, call.end)
            # Otherwise a step goes on, which may end more of them.
            is_still = self._service.backend.is_at_gate or not self._num_live()
            return is_still and self._num_live() == self._service.server.num_active == len(self._calls)

        self._until(agree, "engine, server and clients agree", act=self._service.backend.let_pass)

    def _until(self, condition: Callable[[], bool], what: str, act: Callable[[], None] | None = None) -> None:
        begun = time.monotonic()
        while not condition():
            waited_s = time.monotonic() - begun
            assert waited_s < self.patience_s, f"not within {self.patience_s:g} s: {what}"
            if act is not None and waited_s > 0.003:
                act()
            time.sleep(0.001)

    def _stopped(self) -> None:
        """See that a server that stops has nothing left, and close it."""
        service = self._service
        service.backend.open()
        assert self._stopping is not None
        self._stopping.join(self.patience_s)
        assert not self._stopping.is_alive(), "the server does not stop"
        self._settle()
        assert not self._calls
        self._until(lambda: service.engine.stats().pages_used == 0, "no page is held")
        service.core.check_integrity()
        ends = [line["request_id"] for line in service.log if line["event"] == "request.finished"]
        assert len(ends) == len(set(ends)), "a call has ended twice"
        self._close()
        self.model.phase = Phase.STOPPED

    def _close(self) -> None:
        for call in self._calls.values():
            call.join()
        self._channel.close()
        self._service.close()
