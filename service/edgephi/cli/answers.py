"""
One way to ask for an answer, whether the model is in this process or behind a server.

Owns the difference between the two. Knows nothing of what is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgephi.cli.compose import LocalService, ServiceOptions, open_service
from edgephi.cli.options import Address
from edgephi.cli.sampling import SamplingChoice
from edgephi.errors import EngineFailed

if TYPE_CHECKING:
    from edgephi.artifact.manifest import Progress
    from edgephi.client import Client, FinalInfo
    from edgephi.generation.request import Final

Turn = tuple[Literal["system", "user", "assistant"], str]
"""Who speaks, and what is said."""

OnPrefill = Callable[[int, int], None]
"""Called with prompt tokens done and in all while a prompt is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEnd:
    """
    How an answer ended.

    Attributes:
        model: Name of the model that answered.
        reason: ``stop``, ``length``, ``cancelled`` or ``deadline``.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: How many of them were not computed again.
        output_tokens: Tokens generated.
        time_to_first_token_s: In seconds; None where there was no token.
        decode_s: From the first token to the last.
        accepted_tokens: How many tokens were guessed and so needed no pass over the weights; None where unknown.
    """

    model: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    time_to_first_token_s: float | None
    decode_s: float
    accepted_tokens: int | None = None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decoding speed; None for fewer than two tokens."""
        if self.output_tokens < 2 or self.decode_s <= 0:
            return None
        return (self.output_tokens - 1) / self.decode_s

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return {
            "model": self.model,
            "finish_reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "accepted_tokens": self.accepted_tokens,
            "time_to_first_token_s": self.time_to_first_token_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }

    def __str__(self) -> str:
        parts = [f"{self.output_tokens} token{'' if self.output_tokens == 1 else 's'}"]
        if self.accepted_tokens:
            parts[0] += f" ({self.accepted_tokens} guessed)"
        if self.time_to_first_token_s is not None:
            parts.append(f"first token {format_seconds(self.time_to_first_token_s)}")
        if self.decode_tokens_per_s is not None:
            parts.append(f"{self.decode_tokens_per_s:.1f} tok/s")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's bytes as text, its log-probability, and the likeliest others at its place, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        top = [{"token": token, "logprob": logprob} for token, logprob in self.top]
        return {"token": self.token, "logprob": self.logprob, "top": top}


class Answer(Protocol):
    """
    An answer as it is made; iterate over it for pieces of text, within its ``with`` block.

    Leaving the block early ends the answer at its next token.

    Attributes:
        end: How it ended; None until it has, and where it was left early.
        scores: Log-probabilities so far, where they were asked for.
        on_prefill: Called while the prompt is computed; set it before iterating.
    """

    end: AnswerEnd | None
    scores: list[TokenScore]
    on_prefill: OnPrefill | None

    def __iter__(self) -> Iterator[str]: ...

    def __enter__(self) -> Answer: ...

    def __exit__(self, *exception: object) -> None: ...


class Source(Protocol):
    """Something that answers."""

    model: str
    """Name of the model."""

    def chat(self, turns: Sequence[Turn], choice: SamplingChoice) -> Answer:
        """Answer the last turn of a conversation."""
        ...

    def complete(self, prompt: str, choice: SamplingChoice) -> Answer:
        """Continue a raw prompt."""
        ...


@contextlib.contextmanager
def open_source(
    address: Address | None, options: ServiceOptions, *, progress: Progress | None = None
) -> Iterator[Source]:
    """
    Connect to a server, or load the model here when there is no address.

    Raises:
        EdgephiError: As ``open_service`` and the client do.
    """
    if address is not None:
        with address.connect() as client:
            yield _RemoteSource(client)
    else:
        # One request at a time, so that an answer may use the whole context.
        with open_service(dataclasses.replace(options, max_running=1), progress=progress) as service:
            yield _LocalSource(service)


def format_seconds(seconds: float) -> str:
    """Return a duration in a unit that suits it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class _LocalSource:
    def __init__(self, service: LocalService) -> None:
        self.model = service.info.display_name
        self._generator = service.generator
        self._ids = itertools.count(1)

    def chat(self, turns: Sequence[Turn], choice: SamplingChoice) -> Answer:
        from edgephi.text.template import Message, Role

        messages = [Message(Role(role), content) for role, content in turns]
        return self._answer(self._generator.chat_prompt(messages), choice)

    def complete(self, prompt: str, choice: SamplingChoice) -> Answer:
        return self._answer(self._generator.completion_prompt(prompt), choice)

    def _answer(self, prompt: tuple[int, ...], choice: SamplingChoice) -> Answer:
        from edgephi.generation.request import GenerationRequest

        request = GenerationRequest(
            request_id=f"cli-{next(self._ids)}",
            prompt=prompt,
            max_tokens=choice.max_tokens,
            sampling=choice.over(self._generator.defaults),
            stop=choice.stop,
        )
        return _LocalAnswer(self._generator.stream(request), self.model)


class _LocalAnswer:
    def __init__(self, events: Any, model: str) -> None:
        self.end: AnswerEnd | None = None
        self.scores: list[TokenScore] = []
        self._events = events
        self._model = model
        self.on_prefill: OnPrefill | None = None

    def __iter__(self) -> Iterator[str]:
        from edgephi.engine.request import FinishReason
        from edgephi.generation.request import Delta, Final, PrefillProgress

        for event in self._events:
            if isinstance(event, PrefillProgress) and self.on_prefill is not None:
                self.on_prefill(event.done_tokens, event.total_tokens)
            elif isinstance(event, Delta):
                self.scores += [
                    TokenScore(_text(t.data), t.logprob, tuple((_text(o.data), o.logprob) for o in t.top))
                    for t in event.logprobs
                ]
                if event.text:
                    yield event.text
            elif isinstance(event, Final):
                if event.reason is FinishReason.ERROR:
                    raise EngineFailed(event.error or "the engine failed")
                self.end = self._end(event)

    def _end(self, final: Final) -> AnswerEnd:
        timings = final.timings
        has_token = final.usage.output_tokens > 0
        return AnswerEnd(
            model=self._model,
            reason=final.reason.value,
            prompt_tokens=final.usage.prompt_tokens,
            cached_tokens=final.usage.cached_tokens,
            output_tokens=final.usage.output_tokens,
            time_to_first_token_s=timings.queue_s + timings.prefill_s if has_token else None,
            decode_s=timings.decode_s,
            accepted_tokens=final.usage.accepted_tokens,
        )

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._events.close()


class _RemoteSource:
    def __init__(self, client: Client) -> None:
        self._client = client
        self.model = client.models()[0].display_name

    def chat(self, turns: Sequence[Turn], choice: SamplingChoice) -> Answer:
        return _RemoteAnswer(self._client.chat(turns, **choice.for_client()), self.model)

    def complete(self, prompt: str, choice: SamplingChoice) -> Answer:
        return _RemoteAnswer(self._client.complete(prompt, **choice.for_client()), self.model)


class _RemoteAnswer:
    def __init__(self, stream: Any, model: str) -> None:
        self.end: AnswerEnd | None = None
        self.scores: list[TokenScore] = []
        self._stream = stream
        self._model = model
        self.on_prefill: OnPrefill | None = None

    def __iter__(self) -> Iterator[str]:
        from edgephi.client import Delta, FinalInfo, PrefillProgress

        for event in self._stream.events():
            if isinstance(event, PrefillProgress) and self.on_prefill is not None:
                self.on_prefill(event.done_tokens, event.total_tokens)
            elif isinstance(event, Delta):
                self.scores += [
                    TokenScore(_text(t.token), t.logprob, tuple((_text(o.token), o.logprob) for o in t.top))
                    for t in event.logprobs
                ]
                if event.text:
                    yield event.text
            elif isinstance(event, FinalInfo):
                self.end = self._end(event)

    def _end(self, final: FinalInfo) -> AnswerEnd:
        return AnswerEnd(
            model=self._model,
            reason=final.reason,
            prompt_tokens=final.usage.prompt_tokens,
            cached_tokens=final.usage.cached_tokens,
            output_tokens=final.usage.output_tokens,
            time_to_first_token_s=final.timings.time_to_first_token_s,
            decode_s=final.timings.decode_s,
        )

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.cancel()


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
