"""
How long requests take: learned from those that ended, to estimate those that wait.

Owns moving averages of speeds and of lengths of answers. Knows no queue and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.engine.request import EngineRequest, Finished, FinishReason

_WEIGHT = 0.2  # of the newest request: about the last ten count
# Shorter prompts take one step, whose time says nothing of longer ones.
_MIN_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRates:
    """
    Speeds of one request among as many as run at once.

    Attributes:
        prefill_tokens_per_s: Of its prompt.
        decode_tokens_per_s: Of its answer.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


# What requests are weighed with before anything is known; nobody is refused by it.
_NOMINAL = ServiceRates(prefill_tokens_per_s=100.0, decode_tokens_per_s=12.0)


class ServiceTimes:
    """
    Estimates in seconds of a place among the running ones. Lives as long as its queue.

    Args:
        start: Speeds to go by until requests have ended, such as a plan's; None for none.
    """

    def __init__(self, start: ServiceRates | None = None) -> None:
        self._prefill = _Rate(None if start is None else start.prefill_tokens_per_s)
        self._decode = _Rate(None if start is None else start.decode_tokens_per_s)
        self._output_tokens: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether estimates rest on a measurement or on what was passed in."""
        return self._decode.tokens_per_s is not None

    def prefill_s(self, request: EngineRequest) -> float:
        """Estimate the time from a request's first step to its first token; 0 where nothing is known."""
        rate = self._prefill.tokens_per_s
        return 0.0 if rate is None else len(request.prompt) / rate

    def service_s(self, request: EngineRequest) -> float:
        """Estimate the time from a request's first step to its end; by nominal speeds where nothing is known."""
        typical = request.max_tokens if self._output_tokens is None else self._output_tokens
        prefill = self._prefill.tokens_per_s or _NOMINAL.prefill_tokens_per_s
        decode = self._decode.tokens_per_s or _NOMINAL.decode_tokens_per_s
        return len(request.prompt) / prefill + min(request.max_tokens, typical) / decode

    def observe(self, end: Finished) -> None:
        """Learn from a request that ended, as far as it got."""
        usage, timings = end.usage, end.timings
        if usage.output_tokens and usage.prompt_tokens >= _MIN_PROMPT_TOKENS:
            # Cached tokens count: the next prompt is likely to find as many.
            self._prefill.observe(usage.prompt_tokens, timings.prefill_s)
        if usage.output_tokens > 1:
            self._decode.observe(usage.output_tokens - 1, timings.decode_s)
        if end.reason in (FinishReason.STOP, FinishReason.LENGTH):
            mean = usage.output_tokens if self._output_tokens is None else self._output_tokens
            self._output_tokens = mean + _WEIGHT * (usage.output_tokens - mean)


class _Rate:
    """Tokens per second over the last requests, the long ones counting for more."""

    def __init__(self, tokens_per_s: float | None) -> None:
        self._tokens, self._seconds = (0.0, 0.0) if tokens_per_s is None else (tokens_per_s, 1.0)

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def observe(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        weight = _WEIGHT if self._seconds > 0 else 1.0
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (seconds - self._seconds)
