"""
How much an engine takes on at present, which may be less than it was configured for.

Owns the rule who is refused for now. Whoever lowers the limits (edgephi.profile.governor decides) gives the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.engine.request import EngineRequest
from edgephi.errors import ConfigError, Overloaded

# Of a request that is larger than allowed at present. Limits rise at most every half a minute, so sooner is in vain.
_LIMITED_RETRY_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """
    Limits that may change while requests run; what runs is never touched, only what comes after.

    Attributes:
        max_running: Most requests that own pages, at least 1. More may still be running from before.
        prefill_chunk_tokens: Most prompt tokens in a step of their own, at least 1.
        mixed_chunk_tokens: Most prompt tokens in a step that other requests decode in, at least 1.
        max_request_tokens: Most tokens of prompt and answer of a new request, at least 1.
        keeps_cached_pages: Whether pages that nobody owns are kept for prompts that begin alike. If not, their memory
            is given back to the system.
        reason: Why they are lower than configured, for people; None where they are not.
    """

    max_running: int
    prefill_chunk_tokens: int
    mixed_chunk_tokens: int
    max_request_tokens: int
    keeps_cached_pages: bool = True
    reason: str | None = None

    def check_within(self, most: EngineLimits) -> None:
        """
        Check that nothing is below 1 or above the limits that an engine was configured for.

        Raises:
            ConfigError: Naming the limit and its bounds.
        """
        for name in ("max_running", "prefill_chunk_tokens", "mixed_chunk_tokens", "max_request_tokens"):
            value, high = getattr(self, name), getattr(most, name)
            if not 1 <= value <= high:
                raise ConfigError(f"{name} is {value}; must be 1 to {high}, what the engine was configured for")

    def check_room(self, request: EngineRequest, *, num_live: int, max_waiting: int, retry_after_ms: int) -> None:
        """
        Refuse a valid request that there is no room for now.

        Args:
            request: What is asked.
            num_live: Requests that have not ended.
            max_waiting: Most of them beyond ``max_running``.
            retry_after_ms: When a place is likely to be free.

        Raises:
            Overloaded: If too many are live, or it needs more than ``max_request_tokens``.
        """
        max_live = self.max_running + max_waiting
        if num_live >= max_live:
            raise Overloaded(
                f"{num_live} requests are live and {max_live} is the limit{self._because()}; retry later",
                retry_after_ms=retry_after_ms,
                value=num_live,
                most=max_live,
            )
        self.check_size(request, retry_after_ms=retry_after_ms)

    def check_size(self, request: EngineRequest, *, retry_after_ms: int = 0) -> None:
        """
        Refuse a valid request that is larger than is taken on at present.

        Raises:
            Overloaded: If it needs more than ``max_request_tokens``.
        """
        num_prompt, max_tokens = len(request.prompt), request.max_tokens
        if num_prompt + max_tokens > self.max_request_tokens:
            raise Overloaded(
                f"{num_prompt} prompt tokens + {max_tokens} max_tokens exceed the {self.max_request_tokens} tokens "
                f"that a request may take at present{self._because()}; retry later, or ask for less",
                retry_after_ms=max(retry_after_ms, _LIMITED_RETRY_MS),
                limit="request_tokens",
                value=num_prompt + max_tokens,
                most=self.max_request_tokens,
            )

    def _because(self) -> str:
        return f" ({self.reason})" if self.reason else ""
