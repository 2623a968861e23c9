"""
What an answer is made of, as plain data.

Owns these types and reading them from protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import duration_pb2

from edgephi.v1 import generation_pb2, generation_service_pb2


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """A part of the prompt was computed: ``done_tokens`` of ``total_tokens``."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """
    A token and its log-probability (natural logarithm, before penalties and temperature).

    Attributes:
        token_id: In the model's vocabulary.
        token: Its UTF-8 bytes, perhaps part of a character; empty for a control token.
        logprob: At most 0.
        top: The most likely tokens at its position, best first; empty for those tokens themselves.
    """

    token_id: int
    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, and log-probabilities of the tokens it completes where they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt, how many of them came from the cache, and tokens of the answer."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """
    Durations in seconds by the server's clock.

    Attributes:
        queue_s: Until the first step.
        prefill_s: From there to the first token.
        decode_s: From the first token to the last.
        time_to_first_token_s: From submission to the first token; None where there was none.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    time_to_first_token_s: float | None

    def decode_tokens_per_s(self, usage: Usage) -> float | None:
        """Return the decoding speed; None for fewer than two tokens."""
        if usage.output_tokens < 2 or self.decode_s <= 0:
            return None
        return (usage.output_tokens - 1) / self.decode_s


@dataclass(frozen=True, slots=True)
class FinalInfo:
    """
    The end of an answer.

    Attributes:
        reason: ``stop``, ``length``, ``cancelled`` (by the server) or ``deadline`` (of the server); of a newer server
            perhaps another word.
        matched_stop: The stop string found, or None.
        usage: Tokens.
        timings: Durations.
        model: Resource name of the model that answered.
    """

    reason: str
    matched_stop: str | None
    usage: Usage
    timings: Timings
    model: str


Event = PrefillProgress | Delta | FinalInfo
Response = generation_service_pb2.ChatResponse | generation_service_pb2.CompleteResponse


def event_of(response: Response) -> Event | None:
    """Read one message of a stream; None for a kind this client does not know."""
    match response.WhichOneof("event"):
        case "prefill_progress":
            progress = response.prefill_progress
            return PrefillProgress(progress.done_tokens, progress.total_tokens)
        case "delta":
            return Delta(response.delta.text, tuple(map(_token, response.delta.logprobs)))
        case "final":
            return _final(response.final)
        case _:
            return None


def _token(token: generation_pb2.TokenLogprobs) -> TokenLogprob:
    top = tuple(TokenLogprob(other.token_id, other.token, other.logprob) for other in token.top)
    return TokenLogprob(token.token_id, token.token, token.logprob, top)


def _final(final: generation_pb2.Final) -> FinalInfo:
    timings = final.timings
    has_first = timings.HasField("time_to_first_token")
    return FinalInfo(
        reason=_reason(final.finish_reason),
        matched_stop=final.matched_stop if final.HasField("matched_stop") else None,
        usage=Usage(final.usage.prompt_tokens, final.usage.cached_tokens, final.usage.output_tokens),
        timings=Timings(
            queue_s=_seconds(timings.queue_duration),
            prefill_s=_seconds(timings.prefill_duration),
            decode_s=_seconds(timings.decode_duration),
            time_to_first_token_s=_seconds(timings.time_to_first_token) if has_first else None,
        ),
        model=final.model,
    )


def _reason(value: generation_pb2.FinishReason.ValueType) -> str:
    if value not in generation_pb2.FinishReason.values():
        return f"unknown {value}"
    return generation_pb2.FinishReason.Name(value).removeprefix("FINISH_REASON_").lower()


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
