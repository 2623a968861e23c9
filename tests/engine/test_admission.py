"""AdmissionQueue: bounds, refusals, fair order, deadlines; each protection with what happens without it."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edgephi.engine.admission import AdmissionConfig, AdmissionQueue
from edgephi.engine.request import EngineRequest, Finished, FinishReason, RequestId, Timings, Usage
from edgephi.engine.service_times import ServiceRates, ServiceTimes
from edgephi.errors import ConfigError, DeadlineTooShort, Overloaded

RATES = ServiceRates(prefill_tokens_per_s=100.0, decode_tokens_per_s=10.0)
UNBOUNDED = AdmissionConfig(
    max_waiting=10**6, max_waiting_tokens=10**9, max_wait_s=math.inf, max_waiting_per_client=10**6
)


def ask(
    name: str, client_id: str = "a", *, prompt: int = 1, max_tokens: int = 9, deadline_s: float | None = None
) -> EngineRequest:
    """A request; with ``RATES`` the default one takes 0.91 s."""
    return EngineRequest(
        request_id=RequestId(name),
        prompt=(1,) * prompt,
        max_tokens=max_tokens,
        client_id=client_id,
        deadline_s=deadline_s,
    )


def end_of(
    request: EngineRequest, *, prefill_s: float, decode_s: float, output_tokens: int = 0, reason: str = "length"
) -> Finished:
    """The end of a request that took so long."""
    return Finished(
        request_id=request.request_id,
        reason=FinishReason(reason),
        usage=Usage(prompt_tokens=len(request.prompt), cached_tokens=0, output_tokens=output_tokens),
        timings=Timings(queue_s=0.0, prefill_s=prefill_s, decode_s=decode_s),
    )


def make(
    config: AdmissionConfig = UNBOUNDED, *, max_running: int = 1, rates: ServiceRates | None = RATES
) -> AdmissionQueue:
    """An empty queue."""
    return AdmissionQueue(config, ServiceTimes(rates), max_running=max_running)


def simulate(
    queue: AdmissionQueue, arrivals: list[tuple[float, EngineRequest]], *, places: int
) -> dict[RequestId, float]:
    """
    Run an engine with so many places that takes exactly what ``RATES`` says, on simulated time.

    Returns:
        When each request started, in seconds.
    """
    started: dict[RequestId, float] = {}
    handed: list[EngineRequest] = []  # in the order they came; the first ``places`` run
    ends: list[tuple[float, int, EngineRequest]] = []
    pending = sorted(arrivals, key=lambda item: item[0])

    def advance(now: float) -> None:
        while (waiting := queue.pop(now)) is not None:
            handed.append(waiting.request)
        while handed and len(ends) < places:
            request = handed.pop(0)
            started[request.request_id] = now
            cost_s = len(request.prompt) / RATES.prefill_tokens_per_s + request.max_tokens / RATES.decode_tokens_per_s
            heapq.heappush(ends, (now + cost_s, len(started), request))

    while pending or ends:
        if pending and (not ends or pending[0][0] <= ends[0][0]):
            now, request = pending.pop(0)
            queue.add(request, now)
        else:
            now, _, request = heapq.heappop(ends)
            prefill_s = len(request.prompt) / RATES.prefill_tokens_per_s
            # Cancelled, so that nothing is learned and costs stay what they are.
            decode_s = request.max_tokens / RATES.decode_tokens_per_s
            queue.finished(end_of(request, prefill_s=prefill_s, decode_s=decode_s, reason="cancelled"))
        advance(now)
    return started


def fill(queue: AdmissionQueue, count: int, client_id: str = "a") -> None:
    """Add requests, handing over what can be."""
    for index in range(count):
        queue.add(ask(f"{client_id}{index}", client_id), 0.0)
        queue.pop(0.0)


def refusal(queue: AdmissionQueue, request: EngineRequest) -> Overloaded:
    """The refusal of a request that has no room."""
    with pytest.raises(Overloaded) as caught:
        queue.add(request, 0.0)
    return caught.value


@pytest.mark.parametrize(
    ("config", "limit", "most"),
    [
        (AdmissionConfig(max_waiting=4), "queue_requests", 3),
        (AdmissionConfig(max_waiting_tokens=25), "queue_tokens", 25),
        (AdmissionConfig(max_wait_s=1.7), "queue_seconds", 1.7),
        (AdmissionConfig(max_waiting_per_client=2), "client_requests", 2),
    ],
)
def test_each_bound_refuses_and_takes_again(config: AdmissionConfig, limit: str, most: float) -> None:
    """Beyond a bound a request is refused with the bound's name, value and limit; after one has ended it is taken."""
    queue = make(config)
    fill(queue, 4)  # one runs, one is next, two wait
    error = refusal(queue, ask("x"))
    assert (error.limit, error.most) == (limit, most)
    assert error.value is not None
    assert error.value >= most
    assert error.retry_after_ms >= 100
    assert queue.remove(RequestId("a3"), "a") is not None
    queue.add(ask("x"), 0.0)
    assert refusal(queue, ask("y")).limit == limit


def test_without_bounds_the_queue_grows() -> None:
    """The control of the test above: with bounds out of reach nothing is refused."""
    queue = make()
    fill(queue, 500)
    assert len(queue) == 498


def test_a_client_with_nothing_waiting_is_taken_in() -> None:
    """Whatever others fill the queue with, one request of another client is taken, unless the count is exhausted."""
    queue = make(AdmissionConfig(max_waiting=8, max_waiting_tokens=20, max_wait_s=1.0, max_waiting_per_client=7))
    fill(queue, 4)
    assert refusal(queue, ask("x")).limit == "queue_tokens"
    for other in "bcdef":
        queue.add(ask(other, other, prompt=1000), 0.0)
    assert refusal(queue, ask("g", "g")).limit == "queue_requests"


def test_a_free_place_is_never_refused() -> None:
    """While fewer run than can, no bound counts."""
    queue = make(AdmissionConfig(max_waiting=0, max_waiting_tokens=1, max_waiting_per_client=1), max_running=3)
    fill(queue, 3)
    assert refusal(queue, ask("x")).limit == "queue_requests"


def test_one_more_than_run_is_handed_over() -> None:
    """At most max_running + 1 are handed over, and what is lowered counts at once."""
    queue = make(max_running=2)
    for index in range(6):
        queue.add(ask(f"r{index}"), 0.0)
    handed = [queue.pop(0.0) for _ in range(4)]
    assert [item and item.request.request_id for item in handed] == ["r0", "r1", "r2", None]
    queue.max_running = 1
    queue.finished(end_of(ask("r0"), prefill_s=0.1, decode_s=0.1))
    assert queue.pop(0.0) is None
    queue.finished(end_of(ask("r1"), prefill_s=0.1, decode_s=0.1))
    assert queue.pop(0.0) is not None


def _modest_waits(greedy_id: str) -> float:
    """Longest wait of five requests of a modest client beside a hundred that came before, in seconds."""
    arrivals = [(0.0, ask(f"g{index}", greedy_id)) for index in range(100)]
    arrivals += [(5.0 * index, ask(f"m{index}", "modest")) for index in range(1, 6)]
    started = simulate(make(), arrivals, places=1)
    return max(started[request.request_id] - at for at, request in arrivals[100:])


def test_a_modest_client_does_not_wait_for_a_greedy_one() -> None:
    """Beside a client with a hundred requests another one waits for what is already handed over, and no longer."""
    assert _modest_waits("greedy") <= 2 * 0.91 + 1e-9


def test_without_fairness_a_modest_client_starves() -> None:
    """The control of the test above: as one client both wait in one line, and the modest one waits for all."""
    assert _modest_waits("modest") > 60


def test_shares_are_of_time_and_not_of_requests() -> None:
    """A client with requests ten times as long gets a tenth of the requests, and the same time."""
    arrivals = [(0.0, ask(f"l{index}", "long", max_tokens=90)) for index in range(50)]
    arrivals += [(0.0, ask(f"s{index}", "short", max_tokens=9)) for index in range(500)]
    started = simulate(make(), arrivals, places=2)
    first = [name for name, at in started.items() if at < 100]
    num_long = sum(name.startswith("l") for name in first)
    assert 8 <= num_long <= 14
    assert 80 <= len(first) - num_long <= 140


def test_a_client_that_was_away_claims_nothing() -> None:
    """Who comes back after a pause is served in turns with the others, not until it has caught up."""
    queue = make()
    arrivals = [(0.0, ask(f"a{index}", "a")) for index in range(60)] + [(0.0, ask("b", "b"))]
    arrivals += [(30.0, ask(f"b{index}", "b")) for index in range(20)]
    started = simulate(queue, arrivals, places=1)
    after = sorted((at, name) for name, at in started.items() if 32 < at < 42)
    assert 4 <= sum(name.startswith("a") for _, name in after) <= 7


def test_what_a_request_really_took_is_charged() -> None:
    """A client whose answers end early gets more of them than its max_tokens would give it."""
    queue = make(max_running=1)
    for index in range(20):
        queue.add(ask(f"early{index}", "early", max_tokens=90), 0.0)
        queue.add(ask(f"full{index}", "full", max_tokens=90), 0.0)
    served: list[str] = []
    while len(served) < 20:
        waiting = queue.pop(0.0)
        assert waiting is not None
        request = waiting.request
        served.append(request.client_id)
        decode_s = 1.0 if request.client_id == "early" else 9.0
        queue.finished(end_of(request, prefill_s=0.01, decode_s=decode_s, reason="cancelled"))
    assert served.count("early") >= 16


def test_cancelled_while_waiting_costs_nothing() -> None:
    """A request that leaves the queue is not charged, and its place is free."""
    queue = make(AdmissionConfig(max_waiting=4))
    fill(queue, 4)
    assert queue.remove(RequestId("a3"), "a") is not None
    assert queue.remove(RequestId("a3"), "a") is None
    assert queue.remove(RequestId("a0"), "a") is None  # runs
    assert queue.remove(RequestId("a2"), "nobody") is None
    assert (len(queue), queue.tokens) == (1, 10)


def test_put_back_is_first_again() -> None:
    """What the engine did not take is the first of its client again, at no charge."""
    queue = make()
    for name in ("r0", "r1", "r2"):
        queue.add(ask(name), 0.0)
    waiting = queue.pop(0.0)
    assert waiting is not None
    queue.put_back(waiting.request.request_id)
    assert (len(queue), queue.tokens) == (3, 30)
    order = [queue.pop(0.0), queue.pop(0.0)]
    assert [item and item.request.request_id for item in order] == ["r0", "r1"]


def test_a_deadline_before_the_first_token_is_refused_with_both_numbers() -> None:
    """A request whose first token is expected after its deadline is refused; one that can make it is taken."""
    queue = make()
    fill(queue, 5)  # 0.91 s each
    with pytest.raises(DeadlineTooShort) as caught:
        queue.add(ask("x", deadline_s=3.0), 0.0)
    assert caught.value.estimated_s == pytest.approx(5 * 0.91 + 0.01)
    assert caught.value.remaining_s == 3.0
    queue.add(ask("x", deadline_s=4.6), 0.0)
    # Another client comes after what is handed over and one request of the first.
    queue.add(ask("y", "b", deadline_s=3.0), 0.0)


def test_nothing_is_refused_for_a_deadline_before_anything_is_known() -> None:
    """Without a measurement or a starting value every deadline is accepted, and no queue is too long in seconds."""
    queue = make(AdmissionConfig(max_wait_s=1e-9, max_waiting=1000, max_waiting_per_client=100), rates=None)
    fill(queue, 50)
    queue.add(ask("x", deadline_s=0.001), 0.0)
    assert queue.first_token_s(ask("y"), 0.0) is None
    queue.finished(end_of(ask("a0"), prefill_s=0.1, decode_s=0.8, output_tokens=9))
    with pytest.raises(DeadlineTooShort):
        queue.add(ask("y", "b", deadline_s=0.001), 0.0)


def test_late_requests_are_taken_out() -> None:
    """What can no longer begin in time leaves the queue: at its deadline less the time of its prompt."""
    queue = make()
    fill(queue, 2)
    queue.add(ask("r", prompt=100, deadline_s=9.0), 0.0)
    queue.add(ask("s"), 0.0)
    assert queue.next_late_at == pytest.approx(8.0)
    assert queue.pop_late(7.9) == []
    assert [waiting.request.request_id for waiting in queue.pop_late(8.1)] == ["r"]
    assert queue.next_late_at == math.inf
    assert len(queue) == 1


@given(
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), max_size=25),
    places=st.integers(1, 4),
    client_id=st.sampled_from("abcd"),
)
def test_estimates_of_the_first_token_are_near_what_happens(
    requests: list[tuple[str, int]], places: int, client_id: str
) -> None:
    """On a machine as fast as measured, a request starts within a few requests' time of what it was told."""
    queue = make(max_running=places)
    arrivals = [(0.0, ask(f"r{i}", client, max_tokens=tokens)) for i, (client, tokens) in enumerate(requests)]
    probe = make(max_running=places)
    for _, request in arrivals:
        probe.add(request, 0.0)
        probe.pop(0.0)
    asked = ask("asked", client_id)
    estimated_s = probe.first_token_s(asked, 0.0)
    assert estimated_s is not None
    started = simulate(queue, [*arrivals, (0.0, asked)], places=places)
    longest_s = max([0.91, *(tokens / 10 + 0.01 for _, tokens in requests)])
    assert abs(started[asked.request_id] + 0.01 - estimated_s) <= 4 * longest_s


def test_retries_are_spread() -> None:
    """Those who are refused in a row are told different times, within the time that the queue takes to empty."""
    queue = make(AdmissionConfig(max_waiting=12))
    fill(queue, 10)
    delays = [refusal(queue, ask("x")).retry_after_ms for _ in range(8)]
    assert len(set(delays)) == 8
    assert max(delays) <= 1000 * queue.wait_s


def test_a_refusal_takes_the_same_time_however_many_wait() -> None:
    """With two thousand waiting a refusal is about as fast as with twenty."""

    def best_of(num_waiting: int) -> float:
        queue = make(
            AdmissionConfig(
                max_waiting=num_waiting * 2,
                max_waiting_per_client=num_waiting,
                max_waiting_tokens=10**9,
                max_wait_s=1e9,
            )
        )
        fill(queue, num_waiting + 2)
        request = ask("x")
        durations = []
        for _ in range(300):
            started_at = time.perf_counter()
            refusal(queue, request)
            durations.append(time.perf_counter() - started_at)
        return min(durations)

    few = best_of(20)
    assert min(best_of(2000) for _ in range(5)) < 10 * few  # 100 times as many


def test_many_clients_are_forgotten_again() -> None:
    """Clients that came and went while others kept the engine busy do not stay in memory."""
    queue = make()
    fill(queue, 1, "busy")
    for index in range(5000):
        queue.add(ask(f"r{index}", f"client{index}"), 0.0)
        assert queue.pop(0.0) is not None
        queue.finished(end_of(ask(f"r{index}"), prefill_s=0.01, decode_s=0.9))
    assert len(queue._clients) <= 1024
    queue.finished(end_of(ask("busy0"), prefill_s=0.01, decode_s=0.9))
    assert len(queue._clients) == 0


def test_speeds_are_learned() -> None:
    """Estimates follow what requests took; a prompt of one step says nothing of longer ones."""
    times = ServiceTimes()
    knows = [times.is_known]
    times.observe(end_of(ask("a", prompt=2), prefill_s=0.5, decode_s=0.0, output_tokens=1))
    assert times.prefill_s(ask("b", prompt=500)) == 0.0
    for _ in range(40):
        times.observe(end_of(ask("a", prompt=100), prefill_s=2.0, decode_s=1.0, output_tokens=11))
    assert [*knows, times.is_known] == [False, True]
    assert times.prefill_s(ask("b", prompt=500)) == pytest.approx(10.0)
    # Answers are as long as they usually are, or as max_tokens allows.
    assert times.service_s(ask("b", prompt=50, max_tokens=1000)) == pytest.approx(1.0 + 1.1, rel=0.01)
    assert times.service_s(ask("b", prompt=50, max_tokens=5)) == pytest.approx(1.0 + 0.5)
    for _ in range(60):
        times.observe(end_of(ask("a", prompt=100), prefill_s=1.0, decode_s=2.0, output_tokens=11))
    assert times.prefill_s(ask("b", prompt=500)) == pytest.approx(5.0, rel=0.01)
    times.observe(end_of(ask("a", prompt=100), prefill_s=0.0, decode_s=0.0, output_tokens=5))  # a clock too coarse
    assert times.service_s(ask("b")) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AdmissionConfig(max_waiting=-1),
        lambda: AdmissionConfig(max_waiting_tokens=0),
        lambda: AdmissionConfig(max_wait_s=0),
        lambda: AdmissionConfig(max_wait_s=math.nan),
        lambda: AdmissionConfig(max_waiting_per_client=0),
    ],
)
def test_a_wrong_bound_is_refused(wrong: Callable[[], AdmissionConfig]) -> None:
    """A bound that makes no sense is refused with its name and value."""
    with pytest.raises(ConfigError, match="max_wait"):
        wrong()
