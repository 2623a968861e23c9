"""AdmittingLoop over the real loop and the fake backend: order, cancel, ends of those who never start, failures."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.engine.inbox import PATIENCE_S, Inbox

from edgephi.engine.admission import AdmissionConfig
from edgephi.engine.admitting_loop import AdmittingLoop
from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, FinishReason, RequestId, TokenSampled
from edgephi.engine.service_times import ServiceRates
from edgephi.engine.sinks import Sink
from edgephi.errors import (
    DeadlineTooShort,
    EdgephiError,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    PromptTooLong,
)
from edgephi.runtime.fake import FakeBackend

MakeRequest = Callable[..., EngineRequest]


class GatedBackend(FakeBackend):
    """A fake whose forwards wait until the gate is open."""

    def __init__(self) -> None:
        super().__init__(vocab_size=50, page_size=4, num_pages=64, max_batch_tokens=32, max_context_tokens=128)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.num_forwards = 0

    def forward(self, batch: ForwardBatch) -> F32Array:
        self.num_forwards += 1
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return super().forward(batch)


class RefusingLoop(EngineLoop):
    """The real loop, which first raises what a test has put into ``refusals``, and is as healthy as a test says."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.refusals: list[Exception] = []
        self.submitted: list[EngineRequest] = []
        self.state = EngineState.RUNNING
        self.on_submit: Callable[[], None] = lambda: None

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        self.on_submit()
        if self.refusals:
            raise self.refusals.pop(0)
        self.submitted.append(request)
        super().submit(request, sink)

    def health(self) -> EngineHealth:
        return EngineHealth(state=self.state)


class Front:
    """A loop with its queue, and what a test does with it."""

    def __init__(self, *, max_running: int = 1, start: ServiceRates | None = None, **bounds: float) -> None:
        self.backend = GatedBackend()
        engine = Engine(self.backend, EngineConfig(max_running=max_running, max_waiting=1))
        self.inner = RefusingLoop(engine)
        self.loop = AdmittingLoop(self.inner, AdmissionConfig(**bounds), start=start)  # type: ignore[arg-type]  # ints
        self.order: list[RequestId] = []

    def submit(self, request: EngineRequest) -> Inbox:
        inbox = Inbox(self.order)
        self.loop.submit(request, inbox)
        return inbox

    def close(self) -> None:
        self.backend.gate.set()
        self.loop.close()


MakeFront = Callable[..., Front]


@pytest.fixture
def make_front() -> Iterator[MakeFront]:
    """Make fronts that are closed after the test, with their gate open."""
    made: list[Front] = []

    def make(**arguments: object) -> Front:
        made.append(Front(**arguments))  # type: ignore[arg-type]  # passed on as they are
        return made[-1]

    yield make
    for front in made:
        front.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    wait = threading.Event()
    for _ in range(int(PATIENCE_S / 0.002)):
        if condition():
            return
        wait.wait(0.002)
    raise AssertionError("it did not happen")


def of(request: EngineRequest, client_id: str, deadline_s: float | None = None) -> EngineRequest:
    """The request, asked by a client."""
    return dataclasses.replace(request, client_id=client_id, deadline_s=deadline_s)


def test_answers_are_those_of_the_loop_behind(make_front: MakeFront, make_request: MakeRequest) -> None:
    """Many more requests than places get the same events as without a queue, on the engine's thread."""
    front = make_front(max_running=2)
    front.backend.gate.set()
    inboxes = [front.submit(make_request(f"r{index}", max_tokens=3)) for index in range(12)]
    ends = [inbox.wait() for inbox in inboxes]
    assert {end.reason for end in ends} == {FinishReason.LENGTH}
    answers = {tuple(e.token_id for e in inbox.events if isinstance(e, TokenSampled)) for inbox in inboxes}
    assert len(answers) == 1
    assert {name for inbox in inboxes for name in inbox.thread_names} == {"edgephi-engine"}
    until(lambda: front.loop.stats().running == front.loop.stats().waiting == 0)


def test_clients_take_turns(make_front: MakeFront, make_request: MakeRequest) -> None:
    """A client that asks last, behind ten requests of another, is served third: after what was handed over."""
    front = make_front()
    inboxes = [front.submit(of(make_request(f"g{index}"), "greedy")) for index in range(10)]
    front.backend.entered.wait(PATIENCE_S)
    until(lambda: len(front.inner.submitted) == 2)
    modest = front.submit(of(make_request("m"), "modest"))
    assert front.loop.stats().waiting + front.loop.stats().running == 11
    front.backend.gate.set()
    for inbox in [*inboxes, modest]:
        inbox.wait()
    assert front.order == ["g0", "g1", "m", *(f"g{index}" for index in range(2, 10))]


def test_at_most_one_more_than_run_is_handed_over(make_front: MakeFront, make_request: MakeRequest) -> None:
    """The loop behind never gets more than max_running + 1 at a time, and what the governor lowers counts at once."""
    front = make_front(max_running=2)
    front.loop.set_limits(dataclasses.replace(front.loop.max_limits, max_running=1, reason="hot"))
    assert (front.loop.limits.max_running, front.inner.limits.max_running) == (1, 1)
    inboxes = [front.submit(make_request(f"r{index}")) for index in range(6)]
    until(lambda: len(front.inner.submitted) == 2)
    front.loop.set_limits(front.loop.max_limits)
    until(lambda: len(front.inner.submitted) == 3)
    assert front.loop.stats().waiting + front.loop.stats().running == 6
    front.backend.gate.set()
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.LENGTH] * 6


def test_refusals_reach_the_caller_and_start_nothing(make_front: MakeFront, make_request: MakeRequest) -> None:
    """Bad, too long, duplicate, surplus and too urgent requests are refused in the caller's thread."""
    rates = ServiceRates(prefill_tokens_per_s=10.0, decode_tokens_per_s=10.0)
    front = make_front(max_waiting=4, start=rates)
    inboxes = [front.submit(make_request(f"r{index}")) for index in range(4)]
    with pytest.raises(InvalidRequest, match="max_tokens"):
        front.submit(make_request("bad", max_tokens=0))
    with pytest.raises(PromptTooLong):
        front.submit(make_request("long", max_tokens=500))
    with pytest.raises(InvalidRequest, match="live request"):
        front.submit(make_request("r3"))
    with pytest.raises(Overloaded) as caught:
        front.submit(make_request("surplus"))
    assert caught.value.limit == "queue_requests"
    with pytest.raises(DeadlineTooShort):
        front.submit(of(make_request("urgent"), "b", 0.2))
    front.loop.set_limits(dataclasses.replace(front.loop.max_limits, max_request_tokens=8))
    with pytest.raises(Overloaded) as caught:
        front.submit(of(make_request("large", max_tokens=40), "b"))
    assert caught.value.limit == "request_tokens"
    front.backend.gate.set()
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.LENGTH] * 4


def test_a_deadline_that_passes_in_the_queue_costs_no_step(make_front: MakeFront, make_request: MakeRequest) -> None:
    """Its request ends with DEADLINE while the engine is busy, never having reached it; the next one is answered."""
    front = make_front()
    running, spare = front.submit(make_request("r0")), front.submit(make_request("r1"))
    late, patient = front.submit(of(make_request("late"), "", 0.05)), front.submit(of(make_request("p"), "", 60.0))
    end = late.wait()
    assert (end.reason, end.usage.output_tokens, end.usage.prompt_tokens) == (FinishReason.DEADLINE, 0, 3)
    assert end.timings.queue_s >= 0.05
    front.backend.gate.set()
    assert [inbox.wait().reason for inbox in (running, spare, patient)] == [FinishReason.LENGTH] * 3
    assert [request.request_id for request in front.inner.submitted] == ["r0", "r1", "p"]
    remaining_s = front.inner.submitted[-1].deadline_s
    assert remaining_s is not None
    assert remaining_s < 60.0


def test_the_wait_is_part_of_the_timings(make_front: MakeFront, make_request: MakeRequest) -> None:
    """queue_s of an answer counts from the submission, not from the hand-over."""
    front = make_front()
    first = front.submit(make_request("r0"))
    others = [front.submit(make_request(f"r{index}")) for index in range(1, 4)]
    threading.Event().wait(0.1)
    front.backend.gate.set()
    first.wait()
    assert all(inbox.wait().timings.queue_s >= 0.1 for inbox in others)


def test_cancel_in_the_queue_frees_the_place_at_once(make_front: MakeFront, make_request: MakeRequest) -> None:
    """A request that waits ends with the first reason it is given, without a step, and another one is taken instead."""
    front = make_front(max_waiting=4)
    inboxes = [front.submit(make_request(f"r{index}")) for index in range(4)]
    with pytest.raises(Overloaded):
        front.submit(make_request("x"))
    front.loop.cancel(RequestId("r3"), FinishReason.DEADLINE)
    front.loop.cancel(RequestId("r3"), FinishReason.CANCELLED)
    front.loop.cancel(RequestId("unknown"))
    assert inboxes[3].wait().reason is FinishReason.DEADLINE
    assert [type(event) for event in inboxes[3].events] == [Finished]
    assert inboxes[3].thread_names == {"edgephi-admission"}
    inboxes[3] = front.submit(make_request("x"))
    front.backend.gate.set()
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.LENGTH] * 4
    assert "r3" not in [request.request_id for request in front.inner.submitted]


def test_cancel_of_a_running_request_leaves_only_its_end(make_front: MakeFront, make_request: MakeRequest) -> None:
    """After cancel() has returned, the sink gets one Finished with the reason and nothing else."""
    front = make_front()
    inbox, other = front.submit(make_request("r", max_tokens=50)), front.submit(make_request("other"))
    assert front.backend.entered.wait(PATIENCE_S)
    front.loop.cancel(RequestId("r"), FinishReason.STOP)
    front.backend.gate.set()
    assert inbox.wait().reason is FinishReason.STOP
    assert [type(event) for event in inbox.events] == [Finished]
    assert other.wait().reason is FinishReason.LENGTH


def test_cancel_during_the_hand_over(make_front: MakeFront, make_request: MakeRequest) -> None:
    """A request that is cancelled on its way to the engine is cancelled there, and gets nothing but its end."""
    front = make_front()
    arrived, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        arrived.set()
        assert go_on.wait(PATIENCE_S)

    front.inner.on_submit = pause
    front.backend.gate.set()
    inbox = front.submit(make_request("r", max_tokens=60))
    assert arrived.wait(PATIENCE_S)
    front.loop.cancel(RequestId("r"))
    go_on.set()
    assert inbox.wait().reason is FinishReason.CANCELLED
    assert [type(event) for event in inbox.events] == [Finished]
    until(lambda: front.inner.stats().pages_used == 0)


def test_a_sink_may_submit_and_cancel(make_front: MakeFront, make_request: MakeRequest) -> None:
    """From inside their ends, one in the queue and one in the engine, sinks may start the next request."""
    front = make_front(max_waiting=10)
    inboxes: list[Inbox] = []

    class Chainer(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            if isinstance(event, Finished):
                inboxes.append(front.submit(make_request(event.request_id, max_tokens=1)))

    chainers = [Chainer() for _ in range(3)]
    for index, chainer in enumerate(chainers):
        front.loop.submit(make_request(f"r{index}"), chainer)
    front.loop.cancel(RequestId("r2"))
    chainers[2].wait()
    front.backend.gate.set()
    for chainer in chainers[:2]:
        chainer.wait()
    until(lambda: len(inboxes) == 3)
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.LENGTH] * 3


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_sink_that_raises_ends_only_its_own_request(
    make_front: MakeFront, make_request: MakeRequest, error: BaseException
) -> None:
    """Whatever a sink raises, running or waiting, others are answered and the queue goes on."""

    class Raiser(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            raise error

    front = make_front()
    running, waiting = Raiser(), Raiser()
    front.loop.submit(make_request("running", max_tokens=50), running)
    spare = front.submit(make_request("spare"))
    front.loop.submit(make_request("waiting"), waiting)
    front.loop.cancel(RequestId("waiting"))
    waiting.wait()
    front.backend.gate.set()
    assert running.wait().reason is FinishReason.CANCELLED
    assert spare.wait().reason is FinishReason.LENGTH
    assert front.submit(make_request("later")).wait().reason is FinishReason.LENGTH


@pytest.mark.parametrize("error", [NotReady("loading"), EngineFailed("gone")])
def test_when_the_engine_is_gone_all_that_wait_end(
    make_front: MakeFront, make_request: MakeRequest, error: EdgephiError
) -> None:
    """A hand-over that the engine refuses because it ended gives everyone in the queue an ERROR at once."""
    front = make_front(max_waiting=10)
    inboxes = [front.submit(make_request(f"r{index}")) for index in range(5)]
    until(lambda: len(front.inner.submitted) == 2)
    front.inner.refusals.append(error)
    front.loop.cancel(RequestId("r1"))  # its place is offered to the next
    front.backend.gate.set()
    ends = [inbox.wait() for inbox in inboxes]
    assert [end.reason.value for end in ends] == ["length", "cancelled", "error", "error", "error"]
    assert {end.error for end in ends[2:]} == {str(error)}
    assert front.submit(make_request("later")).wait().reason is FinishReason.LENGTH


@pytest.mark.parametrize(("state", "error"), [(EngineState.STARTING, NotReady), (EngineState.FAILED, EngineFailed)])
def test_nothing_waits_for_an_engine_that_is_not_running(
    make_front: MakeFront, make_request: MakeRequest, state: EngineState, error: type[EdgephiError]
) -> None:
    """While the engine starts again, or has failed, a request is refused at once."""
    front = make_front()
    front.inner.state = state
    with pytest.raises(error):
        front.submit(make_request())


def test_a_full_engine_is_asked_again(make_front: MakeFront, make_request: MakeRequest) -> None:
    """When limits sank during the hand-over the request waits on and is answered; a cancel meanwhile ends it."""
    front = make_front()
    front.inner.refusals += [Overloaded("full", retry_after_ms=1)] * 3
    front.backend.gate.set()
    assert front.submit(make_request()).wait().reason is FinishReason.LENGTH
    front.inner.refusals += [Overloaded("full", retry_after_ms=1)] * 10**6
    inbox = front.submit(make_request())
    until(lambda: len(front.inner.refusals) < 10**6)
    front.loop.cancel(RequestId("r"))
    assert inbox.wait().reason is FinishReason.CANCELLED


def test_a_request_that_became_too_large_ends(make_front: MakeFront, make_request: MakeRequest) -> None:
    """When the governor lowers the size of requests, one that waits and exceeds it ends with the reason."""
    front = make_front()
    inboxes = [front.submit(make_request(f"r{index}", max_tokens=20)) for index in range(3)]
    until(lambda: len(front.inner.submitted) == 2)
    front.loop.set_limits(dataclasses.replace(front.loop.max_limits, max_request_tokens=10, reason="memory"))
    small = front.submit(make_request("small"))
    front.backend.gate.set()
    ends = [inbox.wait() for inbox in inboxes]
    assert [end.reason.value for end in ends] == ["length", "length", "error"]
    assert "memory" in (ends[2].error or "")
    assert small.wait().reason is FinishReason.LENGTH


def test_an_error_of_ours_leaves_nobody_waiting(make_front: MakeFront, make_request: MakeRequest) -> None:
    """If the thread fails, all that wait end with ERROR, and health says that the engine cannot go on."""
    front = make_front(max_waiting=10)
    front.inner.refusals.append(RuntimeError("bug"))
    inboxes = [front.submit(make_request())]
    for index in range(3):
        try:
            inboxes.append(front.submit(make_request(f"r{index}")))
        except NotReady:
            break
    assert {inbox.wait().reason for inbox in inboxes} == {FinishReason.ERROR}
    until(lambda: not front.loop.is_alive)
    assert front.loop.health().state is EngineState.FAILED


def test_close_ends_everything_once(make_front: MakeFront, make_request: MakeRequest) -> None:
    """Closing cancels running and waiting requests, closes the loop behind, refuses newcomers and may be repeated."""
    front = make_front()
    inboxes = [front.submit(make_request(f"r{index}", max_tokens=60)) for index in range(5)]
    assert front.backend.entered.wait(PATIENCE_S)
    with pytest.raises(EngineFailed, match="stuck"):
        front.loop.close(0.05)
    front.backend.gate.set()
    front.loop.close()
    front.loop.close()
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.CANCELLED] * 5
    assert not front.loop.is_alive
    assert not front.inner.is_alive
    with pytest.raises(NotReady):
        front.submit(make_request())


def test_a_watchdog_does_not_count_idle_time(make_front: MakeFront, make_request: MakeRequest) -> None:
    """A request that waits for its hand-over moves last_step_at, so that idle time is not taken for a stuck step."""
    front = make_front()
    before = front.loop.last_step_at
    front.submit(make_request())
    assert front.loop.last_step_at > before


def test_a_dropped_loop_warns_and_stops(make_request: MakeRequest) -> None:
    """A loop that nobody closed warns ResourceWarning and its thread ends."""
    front = Front()
    thread = next(t for t in threading.enumerate() if t.name == "edgephi-admission" and t is front.loop._thread)
    inner = front.inner
    with pytest.warns(ResourceWarning, match="AdmittingLoop"):
        del front.loop
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    inner.close()


def test_many_threads_each_get_their_own_end(make_front: MakeFront, make_request: MakeRequest) -> None:
    """Submits and cancels from several threads at once give each request exactly one end, and the queue is empty."""
    front = make_front(max_running=2, max_waiting=40)
    front.backend.gate.set()
    inboxes: queue.Queue[Inbox] = queue.Queue()

    def call(name: str) -> None:
        for index in range(20):
            request = of(make_request(f"{name}{index}", max_tokens=3), name)
            try:
                inboxes.put(front.submit(request))
            except Overloaded:
                continue
            if index % 3 == 0:
                front.loop.cancel(request.request_id)

    threads = [threading.Thread(target=call, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert inboxes.qsize() >= 42  # places and queue together
    reasons = {inbox.wait().reason for inbox in inboxes.queue}
    assert reasons <= {FinishReason.LENGTH, FinishReason.CANCELLED}
    until(lambda: front.loop.stats().running == front.loop.stats().waiting == 0)
    until(lambda: front.inner.stats().pages_used == 0)
