"""
Gauges and counters of an engine.

Owns the type only, so that those who watch an engine need not load what computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.engine.limits import EngineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """
    Gauges and counters of an engine at one moment.

    Attributes:
        running: Requests that own pages.
        waiting: Requests in the queue.
        pages_total: Pages of the pool: free, used and cached.
        pages_used: Pages owned by running requests; a shared one counts once.
        pages_cached: Pages nobody owns whose tokens may be reused.
        context_tokens: Tokens that running requests have in pages; less than the pages hold, which are reserved for
            whole answers.
        tokens_prefilled_total: Prompt tokens computed.
        tokens_generated_total: Tokens drawn, stop tokens included.
        steps_total: Forwards begun.
        cached_tokens_total: Prompt tokens taken from shared pages instead of being computed.
        drafted_tokens_total: Guessed tokens computed beside others.
        accepted_tokens_total: How many of them were drawn: tokens that needed no forward of their own.
        decode_tokens_total: Tokens drawn after the first one of their request.
        decode_stream_s_total: Seconds that requests spent drawing these, all requests added up. Its growth divides that
            of ``decode_tokens_total`` to tokens a second of one stream.
        decode_s_total: Seconds in which any request did; divides the same to how many did at once.
        limits: Limits in force.
    """

    running: int
    waiting: int
    pages_total: int
    pages_used: int
    pages_cached: int
    context_tokens: int
    tokens_prefilled_total: int
    tokens_generated_total: int
    steps_total: int
    cached_tokens_total: int
    drafted_tokens_total: int
    accepted_tokens_total: int
    decode_tokens_total: int
    decode_stream_s_total: float
    decode_s_total: float
    limits: EngineLimits
