"""
Who may wait and who is next: one queue, bounded, and fair between clients.

Owns the bounds, the order and the estimates that a refusal rests on. Pure: no thread, no clock, no engine; time is
passed in and must not go back. The way from here into an engine is edgephi.engine.admitting_loop.

                  refused                       late: ended without a step
                     ^                                   ^
    request --> add --+--> a line for each client --> pop --> handed over --> finished
                           first come, first served      the client that was served least

Source: fair shares by counters of service, "Fairness in Serving Large Language Models" (arXiv 2401.00588) section 4;
what a client is lifted to when it comes back is start-time fair queueing's virtual time (Goyal et al., 1996).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from edgephi.engine.request import EngineRequest, Finished, RequestId
from edgephi.engine.service_times import ServiceTimes
from edgephi.errors import ConfigError, DeadlineTooShort, Overloaded

_UNKNOWN_RETRY_S = 1.0
_MIN_RETRY_S = 0.1
_MAX_RETRY_S = 60.0
_MAX_CLIENTS = 1024  # whose debts are remembered while there is work


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """
    How much may wait. A client that has nothing waiting is refused by ``max_waiting`` alone.

    Attributes:
        max_waiting: Most requests beyond those that can run, at least 0. The last quarter is for clients that have
            nothing waiting, so that a few busy ones cannot keep others out.
        max_waiting_tokens: Most tokens of their prompts and ``max_tokens`` together, at least 1.
        max_wait_s: Most seconds of work that may wait before a new request, all running places working on it; above 0.
        max_waiting_per_client: Most requests of one client that wait, at least 1.

    Raises:
        ConfigError: If a bound is too small.
    """

    max_waiting: int = 32
    max_waiting_tokens: int = 65_536
    max_wait_s: float = 120.0
    max_waiting_per_client: int = 16

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_waiting", self.max_waiting, 0),
            ("max_waiting_tokens", self.max_waiting_tokens, 1),
            ("max_waiting_per_client", self.max_waiting_per_client, 1),
        ):
            if value < low:
                raise ConfigError(f"{name} is {value}; must be at least {low}")
        if not self.max_wait_s > 0:
            raise ConfigError(f"max_wait_s is {self.max_wait_s:g}; must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiting:
    """
    A request in the queue.

    Attributes:
        request: What is asked.
        since: When it came, in seconds.
        late_at: When it could no longer begin before its deadline; infinite without one.
        tokens: Of its prompt and ``max_tokens``.
        cost_s: Seconds that it is expected to take a place.
    """

    request: EngineRequest
    since: float
    late_at: float
    tokens: int
    cost_s: float


@dataclass(slots=True, eq=False)
class _Client:
    """
    One client's line, and how much it was served.

    Attributes:
        waiting: Its requests in the order they came.
        cost_s: Of these together.
        served_s: Counter of service: the client with the least is next.
        num_handed: Its requests that run.
    """

    waiting: dict[RequestId, Waiting] = field(default_factory=dict)
    cost_s: float = 0.0
    served_s: float = 0.0
    num_handed: int = 0


@dataclass(frozen=True, slots=True)
class _Handed:
    """A request that was handed over, and when."""

    waiting: Waiting
    at: float


class AdmissionQueue:
    """
    The queue. Lives as long as its engine; one thread at a time uses it.

    Args:
        config: The bounds.
        times: Estimates; learns from what ends.
        max_running: Requests that run at once.

    Attributes:
        max_running: May change at any time.
    """

    def __init__(self, config: AdmissionConfig, times: ServiceTimes, *, max_running: int) -> None:
        self._config = config
        self._times = times
        self.max_running = max_running
        self._clients: dict[str, _Client] = {}
        self._in_line: dict[str, _Client] = {}  # those of them with requests that wait
        self._handed: dict[RequestId, _Handed] = {}
        self._num_waiting = 0
        self._tokens = 0
        self._cost_s = 0.0
        self._virtual_s = 0.0  # counter of the client that was served last
        self._num_refused = 0

    def __len__(self) -> int:
        """Requests that wait, without those that were handed over."""
        return self._num_waiting

    @property
    def tokens(self) -> int:
        """Tokens of prompts and ``max_tokens`` of those that wait."""
        return self._tokens

    @property
    def wait_s(self) -> float:
        """Seconds of work that wait, all running places working on it."""
        return self._cost_s / self.max_running

    @property
    def num_beyond(self) -> int:
        """Requests beyond those that can run, wherever they wait."""
        return max(0, self._num_waiting + len(self._handed) - self.max_running)

    @property
    def next_late_at(self) -> float:
        """When the next request that waits will be too late to begin; infinite if none will."""
        lines = self._in_line.values()
        return min((waiting.late_at for client in lines for waiting in client.waiting.values()), default=math.inf)

    def require_place(self, client_id: str) -> None:
        """
        Refuse a client whose next request would be refused, whatever it is: before its prompt costs anything.

        Raises:
            Overloaded: If a bound is met.
        """
        self._check_room(self._clients.get(client_id) or _Client(), 0)

    def add(self, request: EngineRequest, now: float) -> None:
        """
        Let a request wait, or refuse it. A refusal takes the same short time however many wait.

        Raises:
            Overloaded: If a bound is met.
            DeadlineTooShort: If its deadline is before its first token is expected.
        """
        tokens = len(request.prompt) + request.max_tokens
        client = self._clients.get(request.client_id) or _Client()
        self._check_room(client, tokens)
        late_at = math.inf
        if request.deadline_s is not None:
            estimated_s = self.first_token_s(request, now)
            if estimated_s is not None and request.deadline_s < estimated_s:
                raise DeadlineTooShort(estimated_s=estimated_s, remaining_s=request.deadline_s)
            late_at = now + request.deadline_s - self._times.prefill_s(request)
        waiting = Waiting(
            request=request, since=now, late_at=late_at, tokens=tokens, cost_s=self._times.service_s(request)
        )
        if request.client_id not in self._clients:
            self._remember(request.client_id, client)
        if not client.waiting:
            # Who asked for nothing meanwhile has no claim to what others got.
            client.served_s = max(client.served_s, self._virtual_s)
        self._enter(waiting, client)

    def pop(self, now: float) -> Waiting | None:
        """
        Hand over the next request: the oldest one of the client that was served least.

        Returns:
            It, counted as running until :meth:`finished` or :meth:`put_back`; None if nobody waits or
            ``max_running + 1`` were handed over. One more than can run, so that the engine never waits for the next.
        """
        if not self._in_line or len(self._handed) > self.max_running:
            return None
        client = min(self._in_line.values(), key=_turn)
        waiting = next(iter(client.waiting.values()))
        self._leave(waiting, client)
        self._virtual_s = max(self._virtual_s, client.served_s)
        client.served_s += waiting.cost_s
        client.num_handed += 1
        self._handed[waiting.request.request_id] = _Handed(waiting, now)
        return waiting

    def put_back(self, request_id: RequestId) -> None:
        """Let a request that was handed over wait again, before all others of its client."""
        waiting = self._handed.pop(request_id).waiting
        client = self._clients[waiting.request.client_id]
        client.num_handed -= 1
        client.served_s -= waiting.cost_s
        behind, client.waiting = client.waiting, {}
        self._enter(waiting, client)
        client.waiting.update(behind)

    def finished(self, end: Finished) -> None:
        """Take note that a request that was handed over has ended, and charge its client what it took."""
        waiting = self._handed.pop(end.request_id).waiting
        client = self._clients[waiting.request.client_id]
        client.num_handed -= 1
        client.served_s += end.timings.prefill_s + end.timings.decode_s - waiting.cost_s
        self._times.observe(end)
        if not self._handed and not self._in_line:
            # Nobody competes, so nobody owes.
            self._clients.clear()
            self._virtual_s = 0.0

    def remove(self, request_id: RequestId, client_id: str) -> Waiting | None:
        """Take a request out of the queue; None if it does not wait."""
        client = self._clients.get(client_id)
        waiting = None if client is None else client.waiting.get(request_id)
        if client is None or waiting is None:
            return None
        self._leave(waiting, client)
        return waiting

    def pop_late(self, now: float) -> list[Waiting]:
        """Take out all that can no longer begin before their deadline."""
        waiting = (waiting for client in self._in_line.values() for waiting in client.waiting.values())
        return self._take_out([item for item in waiting if item.late_at <= now])

    def pop_all(self) -> list[Waiting]:
        """Take out all that wait."""
        return self._take_out([item for client in self._in_line.values() for item in client.waiting.values()])

    def first_token_s(self, request: EngineRequest, now: float) -> float | None:
        """
        Estimate when a request that comes now would have its first token.

        Takes a moment for each client and each place, not for each request.

        Returns:
            Seconds from now; None where nothing is known of speeds.
        """
        if not self._times.is_known:
            return None
        client = self._clients.get(request.client_id) or _Client()
        ahead_s = client.cost_s
        # What this client will have been served when its turn comes; others are served until they have had as much.
        turn_s = max(client.served_s, self._virtual_s) + client.cost_s
        for other in self._in_line.values():
            if other is not client:
                ahead_s += min(max(turn_s - other.served_s, 0.0), other.cost_s)
        return self._place_free_s(ahead_s, now) + self._times.prefill_s(request)

    def _check_room(self, client: _Client, tokens: int) -> None:
        config, num_beyond = self._config, self.num_beyond
        # What is about to be handed over does not wait, whether or not that has happened yet.
        num_own = max(0, len(client.waiting) - max(0, self.max_running + 1 - len(self._handed)))
        if self._num_waiting + len(self._handed) < self.max_running:
            return  # a place is free, nothing will wait
        if num_own >= config.max_waiting_per_client:
            self._refuse(
                "client_requests", num_own, config.max_waiting_per_client, "requests of this client wait already"
            )
        reserved = config.max_waiting // 4 if num_own else 0
        if num_beyond >= config.max_waiting - reserved:
            self._refuse("queue_requests", num_beyond, config.max_waiting - reserved, "requests wait already")
        if not num_own:
            return
        if self._tokens + tokens > config.max_waiting_tokens:
            self._refuse(
                "queue_tokens",
                self._tokens + tokens,
                config.max_waiting_tokens,
                "tokens of prompts and max_tokens would wait",
            )
        if self._times.is_known and self.wait_s > config.max_wait_s:
            self._refuse("queue_seconds", self.wait_s, config.max_wait_s, "seconds of work wait already")

    def _refuse(self, limit: str, value: float, most: float, what: str) -> None:
        self._num_refused += 1
        raise Overloaded(
            f"{_text(value)} {what} and {_text(most)} is the limit; retry later",
            retry_after_ms=round(self._retry_after_s() * 1e3),
            limit=limit,
            value=value,
            most=most,
        )

    def _retry_after_s(self) -> float:
        """Return when a place in the queue is likely to be free, another moment for each refusal in a row."""
        if not self._times.is_known:
            return _UNKNOWN_RETRY_S
        # Spread over the time that the queue takes to empty: those who are refused must not come back all at once.
        turns = 1 + self._num_refused % max(1, self._num_waiting)
        mean_s = self._cost_s / self._num_waiting if self._num_waiting else self._mean_handed_s()
        return min(max(turns * mean_s / self.max_running, _MIN_RETRY_S), _MAX_RETRY_S)

    def _mean_handed_s(self) -> float:
        costs = [handed.waiting.cost_s for handed in self._handed.values()]
        return sum(costs) / max(1, len(costs))

    def _place_free_s(self, ahead_s: float, now: float) -> float:
        """Estimate when a place is free for who comes after ``ahead_s`` seconds of work."""
        left = [max(0.0, handed.waiting.cost_s - (now - handed.at)) for handed in self._handed.values()]
        free = left[: self.max_running] + [0.0] * (self.max_running - len(left))
        heapq.heapify(free)
        for extra_s in left[self.max_running :]:
            heapq.heappush(free, heapq.heappop(free) + extra_s)
        # The work that waits fills the places from the one that is free first, like water.
        level_s, num_places = heapq.heappop(free), 1
        while free and ahead_s > (free[0] - level_s) * num_places:
            ahead_s -= (free[0] - level_s) * num_places
            level_s = heapq.heappop(free)
            num_places += 1
        return level_s + ahead_s / num_places

    def _remember(self, client_id: str, client: _Client) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            for known_id in [i for i, known in self._clients.items() if not known.waiting and not known.num_handed]:
                del self._clients[known_id]
        self._clients[client_id] = client

    def _enter(self, waiting: Waiting, client: _Client) -> None:
        client.waiting[waiting.request.request_id] = waiting
        client.cost_s += waiting.cost_s
        self._in_line[waiting.request.client_id] = client
        self._num_waiting += 1
        self._tokens += waiting.tokens
        self._cost_s += waiting.cost_s

    def _leave(self, waiting: Waiting, client: _Client) -> None:
        del client.waiting[waiting.request.request_id]
        self._num_waiting -= 1
        self._tokens -= waiting.tokens
        # Sums of floats drift, so an empty line is set to nothing.
        client.cost_s = client.cost_s - waiting.cost_s if client.waiting else 0.0
        self._cost_s = self._cost_s - waiting.cost_s if self._num_waiting else 0.0
        if not client.waiting:
            del self._in_line[waiting.request.client_id]

    def _take_out(self, found: list[Waiting]) -> list[Waiting]:
        for waiting in found:
            self._leave(waiting, self._clients[waiting.request.client_id])
        return found


def _turn(client: _Client) -> tuple[float, float]:
    """Order of clients: who was served least, and of equals who has waited longest."""
    return client.served_s, next(iter(client.waiting.values())).since


def _text(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
