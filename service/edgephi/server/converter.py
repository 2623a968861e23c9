"""
Requests for text from protobuf to our types, and events of an answer back.

Owns the paths of fields as the contract names them. Every function that reads a request finds all its violations, those
of ``edgephi.server.limits`` and those of a conversation, before any work is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf import duration_pb2

from edgephi.engine.request import FinishReason, SamplingParams
from edgephi.errors import EngineFailed, FieldViolation, InvalidRequest, ModelNotFound
from edgephi.generation.request import Delta, Final, GenerationEvent, PrefillProgress, TokenText
from edgephi.server.limits import MAX_MESSAGES, violations
from edgephi.server.model_info import COLLECTION, ModelInfo
from edgephi.text.stop_strings import MAX_STOP_STRINGS
from edgephi.text.template import Message, Role, conversation_violations
from edgephi.v1 import generation_pb2, generation_service_pb2, sampling_pb2

_ROLES: Mapping[int, Role] = MappingProxyType(
    {
        generation_pb2.ROLE_SYSTEM: Role.SYSTEM,
        generation_pb2.ROLE_USER: Role.USER,
        generation_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    }
)
_REASONS: Mapping[FinishReason, generation_pb2.FinishReason.ValueType] = MappingProxyType(
    {
        FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
        FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
        FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
        FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
    }
)
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
)


@dataclass(frozen=True, slots=True)
class Options:
    """How an answer is drawn and what ends it; ``max_tokens`` None takes the server's default."""

    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A chat and how to answer it."""

    messages: tuple[Message, ...]
    options: Options

    @property
    def num_bytes(self) -> int:
        """Bytes of text to encode."""
        return text_bytes(self.messages)


@dataclass(frozen=True, slots=True)
class PromptInput:
    """A raw prompt and how to continue it."""

    prompt: str
    options: Options

    @property
    def num_bytes(self) -> int:
        """Bytes of text to encode."""
        return text_bytes(self.prompt)


def chat_input(request: generation_service_pb2.ChatRequest, *, defaults: SamplingParams) -> ChatInput:
    """
    Read a chat.

    Raises:
        InvalidRequest: Naming every field out of bounds.
    """
    messages = _messages(request.messages)
    _refuse(violations(request), messages, "messages")
    return ChatInput(messages, _options(request.sampling, defaults))


def prompt_input(request: generation_service_pb2.CompleteRequest, *, defaults: SamplingParams) -> PromptInput:
    """
    Read a raw prompt.

    Raises:
        InvalidRequest: Naming every field out of bounds.
    """
    _refuse(violations(request))
    return PromptInput(request.prompt, _options(request.sampling, defaults))


def count_input(request: generation_service_pb2.CountTokensRequest) -> tuple[Message, ...] | str:
    """
    Read what to count: the messages of a chat, or a raw prompt.

    Raises:
        InvalidRequest: If neither is given, or naming every field out of bounds.
    """
    found = violations(request)
    match request.WhichOneof("input"):
        case "chat":
            messages = _messages(request.chat.messages)
            _refuse(found, messages, "chat.messages")
            return messages
        case "prompt":
            _refuse(found)
            return request.prompt
        case _:
            raise InvalidRequest(*found, FieldViolation("input", "is not set; set chat or prompt"))


def text_bytes(content: Sequence[Message] | str) -> int:
    """Return how many bytes of UTF-8 there are to encode; white space a message begins with is not encoded."""
    if isinstance(content, str):
        return len(content.encode())
    return sum(len(message.content.lstrip().encode()) for message in content)


def require_served(name: str, model: ModelInfo) -> None:
    """
    Check that a request means the served model; an empty name does, and so does the last part of its name alone.

    Args:
        name: Within its bound.
        model: The served one.

    Raises:
        ModelNotFound: If it names another.
    """
    if name.removeprefix(COLLECTION) not in ("", model.model_id) or name == COLLECTION:
        raise ModelNotFound(f"model {name!r} is not served here; leave model empty or send {model.name!r}")


def contract_paths(found: Sequence[FieldViolation], *, prompt_field: str) -> tuple[FieldViolation, ...]:
    """Rename fields as generation and engine call them to what the contract calls them."""
    return tuple(FieldViolation(_contract_path(v.field, prompt_field), v.description) for v in found)


def chat_response(event: GenerationEvent, *, model: ModelInfo) -> generation_service_pb2.ChatResponse:
    """
    Write one event of a chat's answer.

    Raises:
        EngineFailed: If the answer ended because the engine failed.
    """
    match event:
        case PrefillProgress():
            return generation_service_pb2.ChatResponse(prefill_progress=_progress(event))
        case Delta():
            return generation_service_pb2.ChatResponse(delta=_delta(event))
        case Final():
            return generation_service_pb2.ChatResponse(final=_final(event, model))


def complete_response(event: GenerationEvent, *, model: ModelInfo) -> generation_service_pb2.CompleteResponse:
    """
    Write one event of a raw prompt's continuation.

    Raises:
        EngineFailed: If the answer ended because the engine failed.
    """
    match event:
        case PrefillProgress():
            return generation_service_pb2.CompleteResponse(prefill_progress=_progress(event))
        case Delta():
            return generation_service_pb2.CompleteResponse(delta=_delta(event))
        case Final():
            return generation_service_pb2.CompleteResponse(final=_final(event, model))


def _messages(messages: Sequence[generation_pb2.Message]) -> tuple[Message, ...]:
    # A user may stand anywhere, so the stand-in for an unknown role breaks no further rule. Of a list beyond its bound
    # no more than that is read.
    return tuple(Message(_ROLES.get(m.role, Role.USER), m.content) for m in messages[:MAX_MESSAGES])


def _options(message: sampling_pb2.SamplingParams, defaults: SamplingParams) -> Options:
    def given(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]  # the stub wants a literal

    values = {name: getattr(message if given(name) else defaults, name) for name in _SAMPLING_FIELDS}
    max_tokens = message.max_tokens if message.HasField("max_tokens") else None
    # A list beyond its bound is refused and never read.
    return Options(SamplingParams(**values), max_tokens, tuple(message.stop[:MAX_STOP_STRINGS]))


def _refuse(found: list[FieldViolation], messages: Sequence[Message] = (), path: str = "") -> None:
    """Raise if a field is out of its bound or a conversation breaks a rule, with all of both."""
    if path and all(violation.field != path for violation in found):
        prefix = path.removesuffix("messages")
        found += [FieldViolation(prefix + v.field, v.description) for v in conversation_violations(messages)]
    if found:
        raise InvalidRequest(*found)


def _contract_path(field: str, prompt_field: str) -> str:
    if field == "prompt" or field.startswith("prompt["):
        return prompt_field
    return f"sampling.{field}" if field == "max_tokens" or field.partition("[")[0] == "stop" else field


def _progress(event: PrefillProgress) -> generation_pb2.PrefillProgress:
    return generation_pb2.PrefillProgress(done_tokens=event.done_tokens, total_tokens=event.total_tokens)


def _delta(event: Delta) -> generation_pb2.Delta:
    return generation_pb2.Delta(text=event.text, logprobs=map(_token, event.logprobs))


def _token(token: TokenText) -> generation_pb2.TokenLogprobs:
    top = (
        generation_pb2.TokenAlternative(token_id=other.token_id, token=other.data, logprob=other.logprob)
        for other in token.top
    )
    return generation_pb2.TokenLogprobs(token_id=token.token_id, token=token.data, logprob=token.logprob, top=top)


def _final(event: Final, model: ModelInfo) -> generation_pb2.Final:
    reason = _REASONS.get(event.reason)
    if reason is None:
        raise EngineFailed(event.error or f"the answer ended with {event.reason.value}")
    usage, timings = event.usage, event.timings
    has_token = usage.output_tokens > 0
    return generation_pb2.Final(
        finish_reason=reason,
        matched_stop=event.matched_stop,
        usage=generation_pb2.Usage(
            prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens
        ),
        timings=generation_pb2.Timings(
            queue_duration=_duration(timings.queue_s),
            prefill_duration=_duration(timings.prefill_s),
            decode_duration=_duration(timings.decode_s),
            time_to_first_token=_duration(timings.queue_s + timings.prefill_s) if has_token else None,
        ),
        model=model.name,
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
