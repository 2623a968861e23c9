"""
The state of one live request. Private to the engine: the core and the scheduler change it, nobody else sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgephi.engine.backend import I32Array
from edgephi.engine.pages import PageKey
from edgephi.engine.prediction import TokenPredictor
from edgephi.engine.request import EngineRequest, Timings, Usage
from edgephi.engine.sampling import Sampler


@dataclass(slots=True, eq=False)
class SequenceState:
    """
    Tokens, pages and marks of one request, from submission to its end.

        tokens    [ prompt ............ | output ........ | room up to max_tokens ]
                   0      num_computed     num_tokens
                   |<-- in the pages -->|<- to compute ->|

    A decoding sequence has exactly one token to compute: the last one drawn. Guessed tokens of a step
    (edgephi.engine.speculation) stand behind the known ones until drawn tokens take their places.

    Attributes:
        request: What was asked.
        sampler: Draws its tokens.
        submitted_at: Engine clock, seconds.
        tokens: (prompt + max_tokens,) int32; the first ``num_tokens`` are known.
        keys: Content keys of its first pages, at least those it may share.
        pages: (n,) int32 page ids in order; empty until admitted.
        num_published: How many of its first pages have been offered for sharing.
        num_drafted: Guessed tokens that were computed for it.
        num_accepted: How many of them were drawn.
        predictor: Guesses its tokens, from its first drawn token on; None without speculation.
    """

    request: EngineRequest
    sampler: Sampler
    submitted_at: float
    tokens: I32Array
    keys: list[PageKey]
    num_tokens: int
    num_computed: int = 0
    num_cached: int = 0
    num_published: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    predictor: TokenPredictor | None = None
    pages: I32Array = field(default_factory=lambda: np.empty(0, np.int32))
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def max_len(self) -> int:
        """Tokens of the prompt and of the longest answer allowed."""
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        """Tokens drawn so far."""
        return self.num_tokens - self.prompt_len

    @property
    def is_prefilling(self) -> bool:
        """Whether part of the prompt is still to be computed."""
        return self.num_computed < self.prompt_len

    def append(self, token_id: int, now: float) -> None:
        """Add a drawn token; ``now`` is the engine clock in seconds."""
        self.tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            prompt_tokens=self.prompt_len,
            cached_tokens=self.num_cached,
            output_tokens=self.num_output,
            drafted_tokens=self.num_drafted,
            accepted_tokens=self.num_accepted,
        )

    def timings(self) -> Timings:
        """Durations of the phases it has completed."""
        return Timings(
            queue_s=_elapsed(self.submitted_at, self.first_scheduled_at),
            prefill_s=_elapsed(self.first_scheduled_at, self.first_token_at),
            decode_s=_elapsed(self.first_token_at, self.last_token_at),
        )


def _elapsed(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start
