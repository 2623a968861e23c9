"""Random arrivals, hand-overs, ends, cancels and time: the queue against a model made of plain lists."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgephi.engine.admission import AdmissionConfig, AdmissionQueue
from edgephi.engine.request import EngineRequest, Finished, FinishReason, RequestId, Timings, Usage
from edgephi.engine.service_times import ServiceRates, ServiceTimes
from edgephi.errors import DeadlineTooShort, Overloaded

CONFIG = AdmissionConfig(max_waiting=8, max_waiting_tokens=120, max_wait_s=6.0, max_waiting_per_client=4)
CLIENTS = ("a", "b", "c", "d")


@dataclass(eq=False)
class Asked:
    """What the model knows of one request."""

    request: EngineRequest
    cost_s: float
    late_at: float

    @property
    def tokens(self) -> int:
        """Of its prompt and answer."""
        return len(self.request.prompt) + self.request.max_tokens


class AdmissionMachine(RuleBasedStateMachine):
    """A small queue, so that every bound is met often. Costs stay as estimated: nothing is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.max_running = 2
        times = ServiceTimes(ServiceRates(prefill_tokens_per_s=100.0, decode_tokens_per_s=10.0))
        self.queue = AdmissionQueue(CONFIG, times, max_running=self.max_running)
        self.serial = itertools.count()
        self.waiting: list[Asked] = []
        self.handed: list[Asked] = []
        self.ends: dict[RequestId, int] = {}
        # What each of two clients was served since both wait.
        self.served: dict[tuple[str, str], dict[str, float]] = {}

    @rule(
        client=st.sampled_from(CLIENTS),
        prompt=st.integers(1, 30),
        max_tokens=st.integers(1, 30),
        deadline_s=st.none() | st.floats(0, 20),
    )
    def add(self, client: str, prompt: int, max_tokens: int, deadline_s: float | None) -> None:
        request = EngineRequest(
            request_id=RequestId(f"r{next(self.serial)}"),
            prompt=(1,) * prompt,
            max_tokens=max_tokens,
            client_id=client,
            deadline_s=deadline_s,
        )
        prefill_s = prompt / 100
        late_at = math.inf if deadline_s is None else self.now + deadline_s - prefill_s
        asked = Asked(request, prefill_s + max_tokens / 10, late_at)
        expected = self.met_limit(asked)
        error: Overloaded | DeadlineTooShort | None = None
        try:
            self.queue.add(request, self.now)
        except (Overloaded, DeadlineTooShort) as caught:
            error = caught
        if isinstance(error, Overloaded):
            assert error.limit == expected
            assert 100 <= error.retry_after_ms <= 60_000
            return
        assert expected is None
        if error is None:
            self.waiting.append(asked)
            return
        assert deadline_s is not None
        assert error.remaining_s == deadline_s < error.estimated_s
        # It need not wait longer than one place would take for everything that is there.
        everything_s = sum(a.cost_s for a in [*self.waiting, *self.handed])
        assert error.estimated_s <= everything_s + prefill_s + 1e-6

    def met_limit(self, asked: Asked) -> str | None:
        """The bound that a request meets, by the words of ``AdmissionConfig``."""
        own = [a for a in self.waiting if a.request.client_id == asked.request.client_id]
        num_live = len(self.waiting) + len(self.handed)
        if num_live < self.max_running:
            return None
        # Those who are about to be handed over do not count.
        own = own[max(0, self.max_running + 1 - len(self.handed)) :]
        if len(own) >= CONFIG.max_waiting_per_client:
            return "client_requests"
        if num_live - self.max_running >= CONFIG.max_waiting * (0.75 if own else 1):
            return "queue_requests"
        if own and sum(a.tokens for a in [*self.waiting, asked]) > CONFIG.max_waiting_tokens:
            return "queue_tokens"
        if own and sum(a.cost_s for a in self.waiting) / self.max_running > CONFIG.max_wait_s:
            return "queue_seconds"
        return None

    @rule(puts_back=st.booleans())
    def pop(self, puts_back: bool) -> None:
        may = bool(self.waiting) and len(self.handed) <= self.max_running
        found = self.queue.pop(self.now)
        assert (found is not None) is may
        if found is None:
            return
        client = found.request.client_id
        asked = next(a for a in self.waiting if a.request.client_id == client)
        assert asked.request is found.request, "first come, first served within a client"
        if puts_back:
            self.queue.put_back(found.request.request_id)
            return
        for pair, served in self.served.items():
            if client in pair:
                served[client] += asked.cost_s
        self.waiting.remove(asked)
        self.handed.append(asked)

    @rule(
        lines=st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(1, 30)), min_size=2, max_size=4),
        puts_back=st.booleans(),
        num_turns=st.integers(1, 12),
    )
    def be_busy(self, lines: list[tuple[str, int]], puts_back: bool, num_turns: int) -> None:
        """Clients ask again and again, each for answers of its own length, while the engine works."""
        for _ in range(num_turns):
            for client, max_tokens in lines:
                self.add(client=client, prompt=1, max_tokens=max_tokens, deadline_s=None)
            if self.handed:
                self.finish_one(self.handed[0])
            self.pop(puts_back=puts_back)
            self.pop(puts_back=False)
            self.shares_are_fair()

    @precondition(lambda self: self.handed)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.finish_one(data.draw(st.sampled_from(self.handed)))

    def finish_one(self, asked: Asked) -> None:
        """Let one that was handed over end, having taken what it was expected to."""
        self.handed.remove(asked)
        self.end(asked)
        self.queue.finished(
            Finished(
                request_id=asked.request.request_id,
                reason=FinishReason.CANCELLED,
                usage=Usage(prompt_tokens=len(asked.request.prompt), cached_tokens=0, output_tokens=0),
                timings=Timings(queue_s=0.0, prefill_s=asked.cost_s, decode_s=0.0),
            )
        )

    @precondition(lambda self: self.waiting or self.handed)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from([*self.waiting, *self.handed]))
        found = self.queue.remove(asked.request.request_id, asked.request.client_id)
        assert (found is not None) is (asked in self.waiting)
        if found is not None:
            self.waiting.remove(asked)
            self.end(asked)

    @rule(seconds=st.floats(0.01, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        late = {item.request.request_id for item in self.queue.pop_late(self.now)}
        expected = [a for a in self.waiting if a.late_at <= self.now]
        assert late == {a.request.request_id for a in expected}
        for asked in expected:
            self.waiting.remove(asked)
            self.end(asked)

    @rule(max_running=st.integers(1, 3))
    def change_limit(self, max_running: int) -> None:
        self.queue.max_running = self.max_running = max_running

    def end(self, asked: Asked) -> None:
        """Count an end."""
        request_id = asked.request.request_id
        self.ends[request_id] = self.ends.get(request_id, 0) + 1

    @invariant()
    def counts_agree(self) -> None:
        """Gauges are what the lists say, and the bounds hold."""
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(a.tokens for a in self.waiting)
        assert abs(self.queue.wait_s - sum(a.cost_s for a in self.waiting) / self.max_running) < 1e-6
        assert self.queue.next_late_at == min((a.late_at for a in self.waiting), default=math.inf)
        # A limit that was lowered leaves what it finds; beyond that the count always holds.
        assert len(self.waiting) + len(self.handed) <= 3 + CONFIG.max_waiting
        for client in CLIENTS:
            own = [a for a in self.waiting if a.request.client_id == client]
            assert len(own) <= CONFIG.max_waiting_per_client + 3

    @invariant()
    def shares_are_fair(self) -> None:
        """Of two clients that both had something waiting all the time, none was served much more than the other."""
        in_line = {a.request.client_id for a in self.waiting}
        for pair in itertools.combinations(CLIENTS, 2):
            if not in_line.issuperset(pair):
                self.served.pop(pair, None)
                continue
            one, other = self.served.setdefault(pair, dict.fromkeys(pair, 0.0)).values()
            assert abs(one - other) <= 2 * 3.3 + 1e-6  # the longest request of each

    def teardown(self) -> None:
        """What is left is taken out once, and every request has ended at most once."""
        left = [item.request.request_id for item in self.queue.pop_all()]
        assert sorted(left) == sorted(a.request.request_id for a in self.waiting)
        assert len(self.queue) == 0
        assert set(self.ends.values()) <= {1}
        assert not set(left) & set(self.ends)


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase
