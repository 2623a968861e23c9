"""
What a client may expect of the service: a list of live calls, two numbers and the text of each answer.

Owns no service and no connection. Everything here follows from the contract and from the backend, which echoes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import grpc
from tests.stateful.calls import End
from tests.stateful.service import MAX_RUNNING, MAX_WAITING, tokenizer

CAPACITY = MAX_RUNNING + MAX_WAITING
FULL = End(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
DRAINING = End(grpc.StatusCode.UNAVAILABLE, "DRAINING")
CANCELLED = End(grpc.StatusCode.CANCELLED)


class Phase(enum.Enum):
    """What the server is doing."""

    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Answer:
    """What a chat is answered if nothing ends it before its end; ``output_tokens`` None where that may vary."""

    text: str
    finish: str
    output_tokens: int | None


def answer_to(text: str, max_tokens: int | None, stop: str | None) -> Answer:
    """Return the answer of the echo: the text, up to a stop string or to as many tokens as were asked for."""
    ids = tokenizer().encode(text)
    is_cut = max_tokens is not None and max_tokens <= len(ids)
    told = tokenizer().decode(ids[:max_tokens]) if is_cut else text
    if stop is not None and stop in told:
        return Answer(told[: told.index(stop)], "FINISH_REASON_STOP", None)
    if is_cut:
        return Answer(told, "FINISH_REASON_LENGTH", max_tokens)
    return Answer(told, "FINISH_REASON_STOP", len(ids) + 1)


@dataclass
class Model:
    """
    The service as its clients know it.

    Attributes:
        phase: What it is doing.
        is_cut: Whether running answers are being ended: stopped without a grace.
        live: Names of the chats that were accepted and have not ended.
        cancelled: Those of all that the client ended.
    """

    phase: Phase = Phase.READY
    is_cut: bool = False
    live: dict[str, Answer] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    def refusal(self) -> End | None:
        """Return how a valid request ends that comes now, None if it is accepted."""
        if self.phase is not Phase.READY:
            return DRAINING
        return FULL if len(self.live) >= CAPACITY else None

    def check_part(self, name: str, text: str) -> None:
        """Hold what was received so far of a live chat against its answer."""
        answer = self.live[name]
        assert answer.text.startswith(text), f"{name} received {text!r}, which does not begin {answer.text!r}"

    def ended(self, name: str, text: str, end: End) -> None:
        """
        Take note that an accepted chat has ended.

        Raises:
            AssertionError: If it should not have ended so.
        """
        self.check_part(name, text)
        answer = self.live.pop(name)
        if name in self.cancelled:
            assert end == CANCELLED, f"{name} was cancelled and ended with {end}"
            return
        if self.is_cut and end == DRAINING:
            return
        assert (end.code, end.finish, text) == (grpc.StatusCode.OK, answer.finish, answer.text), (
            f"{name} ended with {end} and {text!r}; expected {answer}"
        )
        assert answer.output_tokens in (None, end.output_tokens), f"{name} counts {end.output_tokens}; {answer}"
