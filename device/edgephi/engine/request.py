"""
What a caller asks of the engine and what the engine answers: token ids in, events out.

Owns the bounds of every sampling field. Knows no text: prompts and answers are token ids.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import NewType

from edgephi.errors import FieldViolation, InvalidRequest, PromptTooLong

RequestId = NewType("RequestId", str)

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 100_000
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY = 0.1
MAX_REPETITION_PENALTY = 10.0
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class FinishReason(enum.Enum):
    """Why a request ended. Every request ends exactly once with one of these."""

    STOP = "stop"  # a stop token, or a stop string found by the text layer
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the caller cancelled or vanished
    DEADLINE = "deadline"  # the caller's deadline passed
    ERROR = "error"  # the backend failed


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """
    How the next token is drawn from the logits.

    Order of application: repetition, presence and frequency penalties on the logits; temperature;
    top_k; min_p; top_p; draw. ``temperature == 0`` is greedy and ignores top_k, top_p and min_p.

    Attributes:
        temperature: 0 (greedy) to 2.
        top_p: Nucleus mass, above 0 and at most 1 (1 keeps all).
        top_k: Keep the k most likely tokens, 1 to 100,000; None keeps all.
        min_p: Drop tokens below this fraction of the most likely one's probability, 0 to 1.
        repetition_penalty: 0.1 to 10; above 1 discourages tokens of the prompt and the answer (CTRL, arXiv 1909.05858).
        presence_penalty: -2 to 2; subtracted once from each token already in the answer.
        frequency_penalty: -2 to 2; subtracted per occurrence in the answer.
        seed: 0 to 2**63 - 1; the same seed, prompt and model give the same answer. None draws one at random.
        logprobs: None for none; otherwise report the chosen token's log-probability and this many
            alternatives, 0 to 20. They are of the model's distribution before penalties and temperature.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None

    def violations(self) -> list[FieldViolation]:
        """Return every field that breaks its bound; empty when all are fine."""
        found: list[FieldViolation] = []

        def check(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> None:
            too_low = value <= low if above_low else value < low
            if not math.isfinite(value) or too_low or value > high:
                bound = f"{'above' if above_low else 'at least'} {low:g} and at most {high:g}"
                found.append(FieldViolation(name, f"is {value:g}; must be {bound}"))

        check("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        check("top_p", self.top_p, 0.0, 1.0, above_low=True)
        if self.top_k is not None:
            check("top_k", self.top_k, 1, MAX_TOP_K)
        check("min_p", self.min_p, 0.0, 1.0)
        check("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        check("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        check("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            found.append(FieldViolation("seed", f"is {self.seed}; must be 0 to 2**63 - 1"))
        if self.logprobs is not None:
            check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        return found

    def validate(self) -> None:
        """
        Check every bound.

        Raises:
            InvalidRequest: Naming each field out of bounds, its value and its limit.
        """
        found = self.violations()
        if found:
            raise InvalidRequest(*found)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """
    One sequence to generate.

    Attributes:
        request_id: Unique among live requests.
        prompt: Token ids, at least one.
        max_tokens: Most tokens to generate, at least 1.
        sampling: How to draw tokens.
        stop_token_ids: Tokens that end the answer; the stop token itself is counted, not reported as a token.
        client_id: Who asks, so that clients share the engine fairly; requests with the same one wait in one line.
        deadline_s: Seconds from now until nobody wants the answer any more; None for no end.
    """

    request_id: RequestId
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: frozenset[int] = frozenset()
    client_id: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """
    Log-probabilities at one position, natural logarithm, of the unmodified distribution.

    Attributes:
        logprob: Of the chosen token.
        top: (token id, log-probability) of the most likely tokens, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """
    Tokens of a finished request.

    Attributes:
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of them came from shared prefix pages and were not computed.
        output_tokens: Tokens generated, the stop token included.
        drafted_tokens: Tokens guessed and checked beside others (edgephi.engine.speculation).
        accepted_tokens: How many of them were right: output tokens that needed no pass over the weights of their own.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """
    Durations of a finished request in seconds, monotonic clock; zero where a phase was never reached.

    Attributes:
        queue_s: From submission to its first scheduled step.
        prefill_s: From its first scheduled step to its first token.
        decode_s: From the first token to the last one.
    """

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """A chunk of the prompt was computed: ``done_tokens`` of ``total_tokens`` (cached ones included)."""

    request_id: RequestId
    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSampled:
    """One token was drawn. Stop tokens are not reported this way; they end the request."""

    request_id: RequestId
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """
    The request ended; no event follows it and its pages are free.

    Attributes:
        error: What failed, for the log, when ``reason`` is ERROR.
    """

    request_id: RequestId
    reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None


EngineEvent = PrefillProgress | TokenSampled | Finished


def check_request(request: EngineRequest, *, vocab_size: int, context_tokens: int) -> None:
    """
    Check a request against every limit that does not change.

    Args:
        request: What is asked.
        vocab_size: Token ids are below it.
        context_tokens: Longest prompt and answer together.

    Raises:
        InvalidRequest: If a field is out of bounds.
        PromptTooLong: If it needs more than the context.
    """
    violations = request.sampling.violations()
    if request.max_tokens < 1:
        violations.append(FieldViolation("max_tokens", f"is {request.max_tokens}; must be at least 1"))
    if not request.prompt:
        violations.append(FieldViolation("prompt", "is empty; must have at least one token"))
    if violations:
        raise InvalidRequest(*violations)
    # Before looking at each token, so that a huge prompt is refused as cheaply as a small one.
    if len(request.prompt) + request.max_tokens > context_tokens:
        raise PromptTooLong(
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            context_tokens=context_tokens,
        )
    if min(request.prompt) < 0 or max(request.prompt) >= vocab_size:
        stray = next(t for t in request.prompt if not 0 <= t < vocab_size)
        limit = vocab_size - 1
        raise InvalidRequest(FieldViolation("prompt", f"has token id {stray}; must be 0 to {limit}"))
