"""
Requests from plain Python values.

Owns the ways a chat may be written. Checks only what the types cannot carry; the server checks the bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypedDict, Unpack

from edgephi.errors import FieldViolation, InvalidRequest
from edgephi.v1 import device_service_pb2, generation_pb2, generation_service_pb2, sampling_pb2

RoleName = Literal["system", "user", "assistant"]

_ROLES: Mapping[str, generation_pb2.Role.ValueType] = MappingProxyType(
    {
        "system": generation_pb2.ROLE_SYSTEM,
        "user": generation_pb2.ROLE_USER,
        "assistant": generation_pb2.ROLE_ASSISTANT,
    }
)


class ChatMessage(NamedTuple):
    """One message of a chat; a plain ``(role, content)`` pair does as well."""

    role: RoleName
    content: str


class Sampling(TypedDict, total=False):
    """How to draw tokens and what ends the answer; bounds and defaults are those of SamplingParams in the contract."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int
    stop: Iterable[str]
    logprobs: int


Chat = str | Iterable[tuple[RoleName, str]]


def chat_request(chat: Chat, *, model: str = "", **sampling: Unpack[Sampling]) -> generation_service_pb2.ChatRequest:
    """
    Write a chat: a text is one message of the user.

    Raises:
        InvalidRequest: If a role is unknown, or a number does not fit its field.
    """
    return generation_service_pb2.ChatRequest(model=model, messages=_messages(chat), sampling=_sampling(sampling))


def complete_request(
    prompt: str, *, model: str = "", **sampling: Unpack[Sampling]
) -> generation_service_pb2.CompleteRequest:
    """
    Write a raw prompt.

    Raises:
        InvalidRequest: If a number does not fit its field.
    """
    return generation_service_pb2.CompleteRequest(model=model, prompt=prompt, sampling=_sampling(sampling))


def count_request(
    chat: Chat | None, *, prompt: str | None, model: str = ""
) -> generation_service_pb2.CountTokensRequest:
    """
    Write what to count: a chat or a raw prompt.

    Raises:
        InvalidRequest: If not exactly one of the two is given.
    """
    if chat is not None and prompt is None:
        messages = generation_pb2.Messages(messages=_messages(chat))
        return generation_service_pb2.CountTokensRequest(model=model, chat=messages)
    if chat is None and prompt is not None:
        return generation_service_pb2.CountTokensRequest(model=model, prompt=prompt)
    raise InvalidRequest(FieldViolation("input", "give either a chat or prompt=..., not both and not neither"))


def watch_request(interval_s: float) -> device_service_pb2.WatchStateRequest:
    """Write a request for the live state every ``interval_s`` seconds."""
    request = device_service_pb2.WatchStateRequest()
    request.interval.FromNanoseconds(round(interval_s * 1e9))
    return request


def _messages(chat: Chat) -> list[generation_pb2.Message]:
    pairs: Iterable[tuple[str, str]] = [("user", chat)] if isinstance(chat, str) else chat
    messages: list[generation_pb2.Message] = []
    for index, (role, content) in enumerate(pairs):
        if role not in _ROLES:
            description = f"is {role!r}; must be 'system', 'user' or 'assistant'"
            raise InvalidRequest(FieldViolation(f"messages[{index}].role", description))
        messages.append(generation_pb2.Message(role=_ROLES[role], content=content))
    return messages


def _sampling(sampling: Sampling) -> sampling_pb2.SamplingParams:
    message = sampling_pb2.SamplingParams()
    for name, value in sampling.items():
        try:
            if name == "stop":
                message.stop.extend([value] if isinstance(value, str) else sampling["stop"])
            else:
                setattr(message, name, value)
        except (AttributeError, TypeError, ValueError, UnicodeError) as error:
            # Such as a negative top_k: it cannot even be sent.
            description = f"{value!r} does not fit the field ({error}); see SamplingParams in the contract"
            raise InvalidRequest(FieldViolation(f"sampling.{name}", description)) from error
    return message
