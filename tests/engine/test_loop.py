"""EngineLoop: threads, cancel from everywhere, sinks that misbehave, close."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.engine.inbox import PATIENCE_S, Inbox

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    TokenSampled,
)
from edgephi.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, PromptTooLong
from edgephi.runtime.fake import FakeBackend

MakeRequest = Callable[..., EngineRequest]


class GatedBackend(FakeBackend):
    """A fake that runs freely, or one forward per permit once it is gated."""

    def __init__(self) -> None:
        super().__init__(vocab_size=50, page_size=4, num_pages=64, max_batch_tokens=32, max_context_tokens=128)
        self.is_gated = False
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.num_forwards = 0

    def forward(self, batch: ForwardBatch) -> F32Array:
        self.num_forwards += 1
        if self.is_gated:
            self.entered.release()
            assert self.permits.acquire(timeout=PATIENCE_S)
        return super().forward(batch)

    def wait_for_forward(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)


@pytest.fixture
def backend() -> GatedBackend:
    """A backend that is not gated yet."""
    return GatedBackend()


@pytest.fixture
def loop(backend: GatedBackend) -> Iterator[EngineLoop]:
    """A loop with two places and room for one more; the gate opens before it closes."""
    with EngineLoop(Engine(backend, EngineConfig(max_running=2, max_waiting=1))) as running:
        yield running
        backend.is_gated = False
        backend.permits.release(100)


def test_events_arrive_in_order_on_the_engine_thread(loop: EngineLoop, make_request: MakeRequest) -> None:
    """A sink gets prefill, tokens and the end, all on the thread named edgephi-engine."""
    inbox = Inbox()
    loop.submit(make_request(max_tokens=5), inbox)
    assert inbox.wait().reason is FinishReason.LENGTH
    assert [type(event) for event in inbox.events] == [PrefillProgress, *[TokenSampled] * 5, Finished]
    assert inbox.thread_names == {"edgephi-engine"}


def test_many_threads_each_get_their_own_answer(loop: EngineLoop, make_request: MakeRequest) -> None:
    """Submitting from several threads at once, retrying when full, gives each caller one end and the same answer."""
    answers: queue.Queue[tuple[int, ...]] = queue.Queue()

    def call(name: str) -> None:
        for index in range(5):
            inbox = Inbox()
            while True:
                try:
                    loop.submit(make_request(f"{name}{index}", max_tokens=3), inbox)
                except Overloaded:
                    threading.Event().wait(0.002)
                else:
                    break
            inbox.wait()
            answers.put(tuple(e.token_id for e in inbox.events if isinstance(e, TokenSampled)))

    threads = [threading.Thread(target=call, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers.qsize() == 30
    assert len(set(answers.queue)) == 1
    assert (loop.stats().running, loop.stats().waiting) == (0, 0)


def test_refusals_reach_the_caller_and_start_nothing(
    loop: EngineLoop, backend: GatedBackend, make_request: MakeRequest
) -> None:
    """A bad, a too long, a duplicate and a surplus request are refused in the caller's thread, mid-forward too."""
    backend.is_gated = True
    inboxes = [Inbox() for _ in range(3)]
    for index, inbox in enumerate(inboxes):
        loop.submit(make_request(f"r{index}", max_tokens=2), inbox)
    backend.wait_for_forward()
    refused = Inbox()
    with pytest.raises(InvalidRequest, match="max_tokens"):
        loop.submit(make_request("bad", max_tokens=0), refused)
    with pytest.raises(PromptTooLong):
        loop.submit(make_request("long", max_tokens=500), refused)
    with pytest.raises(InvalidRequest, match="live request"):
        loop.submit(make_request("r1"), refused)
    with pytest.raises(Overloaded):
        loop.submit(make_request("surplus"), refused)
    backend.is_gated = False
    backend.permits.release(10)
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.LENGTH] * 3
    assert refused.events == []


def test_cancel_inside_a_sink_stops_before_the_next_token(
    loop: EngineLoop, backend: GatedBackend, make_request: MakeRequest
) -> None:
    """A sink that cancels at its second token gets no third one, but an end with its own reason."""

    class Stopper(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            if self.num_tokens == 2:
                loop.cancel(event.request_id, FinishReason.STOP)

    inbox = Stopper()
    loop.submit(make_request(max_tokens=50), inbox)
    end = inbox.wait()
    assert (end.reason, end.usage.output_tokens, inbox.num_tokens) == (FinishReason.STOP, 2, 2)
    assert backend.num_forwards == 2


def test_cancel_inside_a_sink_wins_over_the_end_of_the_same_step(loop: EngineLoop, make_request: MakeRequest) -> None:
    """A stop string found in the very last token is reported as STOP, not as LENGTH."""

    class Stopper(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            if self.num_tokens == 3:
                loop.cancel(event.request_id, FinishReason.STOP)

    inbox = Stopper()
    loop.submit(make_request(max_tokens=3), inbox)
    assert inbox.wait().reason is FinishReason.STOP


def test_cancel_from_outside_frees_pages_before_the_next_forward(
    loop: EngineLoop, backend: GatedBackend, make_request: MakeRequest
) -> None:
    """A request cancelled during a forward takes part in no other one and gets nothing but its end; others go on."""
    backend.is_gated = True
    cancelled, other, queued = Inbox(), Inbox(), Inbox()
    loop.submit(make_request("cancelled", max_tokens=50), cancelled)
    backend.wait_for_forward()
    loop.submit(make_request("other", max_tokens=2), other)
    loop.submit(make_request("queued"), queued)
    for reason in (FinishReason.DEADLINE, FinishReason.CANCELLED):  # the first one counts
        loop.cancel(RequestId("cancelled"), reason)
        loop.cancel(RequestId("queued"), reason)
    loop.cancel(RequestId("unknown"))
    backend.permits.release()
    backend.wait_for_forward()  # of the other request alone
    assert (loop.stats().pages_used, loop.stats().waiting) == (0, 1)  # as it was when this forward was scheduled
    assert [type(event) for event in cancelled.events] == [Finished]
    assert cancelled.wait().reason is FinishReason.DEADLINE
    assert queued.wait().reason is FinishReason.DEADLINE
    assert queued.events == [queued.events[-1]]
    backend.is_gated = False
    backend.permits.release()
    assert other.wait().reason is FinishReason.LENGTH


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit()])
def test_a_sink_that_raises_ends_only_its_own_request(
    loop: EngineLoop, make_request: MakeRequest, error: BaseException
) -> None:
    """Whatever a sink raises, its request is cancelled, others finish and the loop goes on."""

    class Raiser(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            raise error

    raiser, other, later = Raiser(), Inbox(), Inbox()
    loop.submit(make_request("raiser", max_tokens=50), raiser)
    loop.submit(make_request("other", max_tokens=5), other)
    assert raiser.wait().reason is FinishReason.CANCELLED
    assert raiser.num_tokens == 0
    assert other.wait().reason is FinishReason.LENGTH
    loop.submit(make_request("later"), later)
    assert later.wait().reason is FinishReason.LENGTH


def test_a_sink_may_submit_again(loop: EngineLoop, make_request: MakeRequest) -> None:
    """From inside its end, a sink may submit a request with the same id."""
    second = Inbox()

    class Chainer(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            super().__call__(event)
            if isinstance(event, Finished):
                loop.submit(make_request(max_tokens=1), second)

    loop.submit(make_request(), Chainer())
    assert second.wait().reason is FinishReason.LENGTH


def test_close_ends_everything_once(backend: GatedBackend, make_request: MakeRequest) -> None:
    """Closing cancels running and waiting requests, joins the thread, refuses newcomers and may be repeated."""
    backend.is_gated = True
    loop = EngineLoop(Engine(backend, EngineConfig(max_running=1)))
    inboxes = [Inbox() for _ in range(3)]
    for index, inbox in enumerate(inboxes):
        loop.submit(make_request(f"r{index}", max_tokens=50), inbox)
    backend.wait_for_forward()
    with pytest.raises(EngineFailed, match="did not stop"):
        loop.close(timeout_s=0.01)
    with pytest.raises(NotReady):
        loop.submit(make_request("new"), Inbox())
    backend.permits.release()
    loop.close(timeout_s=PATIENCE_S)
    loop.close()
    assert [inbox.wait().reason for inbox in inboxes] == [FinishReason.CANCELLED] * 3
    assert not loop.is_alive
    assert loop.stats().pages_used == 0
    assert backend.num_forwards == 1


def test_close_inside_a_sink_does_not_deadlock(backend: GatedBackend, make_request: MakeRequest) -> None:
    """A sink may close the loop; the thread ends after it returns."""
    loop = EngineLoop(Engine(backend, EngineConfig()))
    closed: list[EngineEvent] = []

    class Closer(Inbox):
        def __call__(self, event: EngineEvent) -> None:
            loop.close()
            closed.append(event)
            super().__call__(event)

    inbox = Closer()
    loop.submit(make_request(max_tokens=50), inbox)
    assert inbox.wait().reason is FinishReason.CANCELLED
    assert len(closed) == len(inbox.events) == 3  # prefill and token of the one step, then the end
    loop.close(timeout_s=PATIENCE_S)
    assert not loop.is_alive


def test_a_loop_dropped_unclosed_warns_and_stops(backend: GatedBackend) -> None:
    """Forgetting close() warns ResourceWarning and leaves no thread behind."""
    loops = [EngineLoop(Engine(backend, EngineConfig()))]
    (thread,) = [t for t in threading.enumerate() if t.name == "edgephi-engine"]
    with pytest.warns(ResourceWarning, match="without close"):
        loops.clear()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_failing_backend_ends_its_requests_and_the_loop_goes_on(
    loop: EngineLoop, backend: GatedBackend, make_request: MakeRequest
) -> None:
    """After the backend has failed, its request has ended with ERROR and the next one is answered."""
    backend.close()
    inbox = Inbox()
    loop.submit(make_request(), inbox)
    end = inbox.wait()
    assert end.reason is FinishReason.ERROR
    assert end.error == "EngineFailed: the backend is closed"
    assert loop.is_alive


def test_an_internal_error_leaves_nobody_waiting(backend: GatedBackend, make_request: MakeRequest) -> None:
    """If the engine itself breaks, every live request ends with ERROR and newcomers are told the engine failed."""

    class BrokenEngine(Engine):
        def step(self) -> list[EngineEvent]:
            if self.stats().steps_total == 2:
                raise RuntimeError("a bug")
            return super().step()

    loop = EngineLoop(BrokenEngine(backend, EngineConfig(max_running=1)))
    first, second = Inbox(), Inbox()
    backend.is_gated = True
    loop.submit(make_request("a", max_tokens=50), first)
    loop.submit(make_request("b", max_tokens=50), second)
    backend.permits.release(10)
    end = first.wait()
    assert (end.reason, end.usage.output_tokens) == (FinishReason.ERROR, 2)
    assert second.wait().reason is FinishReason.ERROR
    with pytest.raises(EngineFailed):
        loop.submit(make_request("c"), Inbox())
    loop.close(timeout_s=PATIENCE_S)


def test_a_watchdog_sees_when_the_last_step_was(backend: GatedBackend, make_request: MakeRequest) -> None:
    """last_step_at counts from the arrival of work and stays put during a forward; idle time does not count."""
    now = [5.0]
    backend.is_gated = True
    with EngineLoop(Engine(backend, EngineConfig(), clock=lambda: now[0])) as loop:
        assert loop.last_step_at == 5.0
        now[0] = 60.0
        inbox = Inbox()
        loop.submit(make_request(max_tokens=1), inbox)
        assert loop.last_step_at == 60.0
        backend.wait_for_forward()
        now[0] = 70.0
        assert loop.last_step_at == 60.0
        assert loop.stats().waiting + loop.stats().running == 1
        backend.permits.release()
        inbox.wait()
        assert loop.last_step_at == 70.0
