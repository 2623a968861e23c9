"""
What a caller asks of generation and what it answers: token ids in, text out.

Owns these types only. The engine's own types (sampling, usage, timings, finish reasons) are reused as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgephi.engine.request import FinishReason, SamplingParams, Timings, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """
    One answer to generate.

    Attributes:
        request_id: Unique among live requests.
        prompt: Token ids, as ``Generator.chat_prompt`` or ``completion_prompt`` made them.
        max_tokens: Most tokens to generate, at least 1; None for the generator's default or all that fit.
        sampling: How to draw tokens; None for the model's defaults.
        stop: Strings that end the answer and are not part of it; at most 16 of at most 256 characters.
        client_id: As in ``EngineRequest``.
        deadline_s: As in ``EngineRequest``.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: SamplingParams | None = None
    stop: tuple[str, ...] = ()
    client_id: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopToken:
    """One token that could have come at a position; ``data`` is as in ``TokenText``."""

    token_id: int
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """
    One token of the answer with its log-probability (natural logarithm, before penalties and temperature).

    Attributes:
        token_id: The token.
        data: Its raw UTF-8 bytes, perhaps part of a character; empty for a control token. Unlike the text of a
            ``Delta``, the first one keeps its leading space.
        logprob: Its log-probability.
        top: The most likely tokens at its position, best first.
    """

    token_id: int
    data: bytes
    logprob: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """A chunk of the prompt was computed: ``done_tokens`` of ``total_tokens`` (cached ones included)."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """
    The next part of the answer; at least one of its fields is not empty.

    Attributes:
        text: Whole characters, in order; never any part of a stop string that ended the answer.
        logprobs: Tokens whose text is now complete, where the request asked for log-probabilities.
    """

    text: str
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """
    The answer ended; no event follows it.

    Attributes:
        reason: Why. STOP whenever a stop string was found, whatever else happened in the same step.
        matched_stop: The stop string found, or None.
        usage: Tokens of the request, those of a stop string included.
        timings: Durations of the request.
        error: What failed, for the log and not for the client, when ``reason`` is ERROR.
    """

    reason: FinishReason
    matched_stop: str | None
    usage: Usage
    timings: Timings
    error: str | None = None


GenerationEvent = PrefillProgress | Delta | Final
