"""
What any client may send: bytes become a request of some method, and the call ends as the contract says.

Owns the properties of a call's end. The first byte chooses the method, the second how the rest is read: as the bytes on
the wire, or as choices of fields; every input is replayed by :func:`run` without the fuzzer.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from tests.fuzz.draw import MARK, Draw, fill
from tests.fuzz.stack import Metadata, Outcome, Stack

from edgephi.engine.request import EngineRequest
from edgephi.server import calls, converter, limits
from edgephi.v1 import generation_service_pb2, sampling_pb2

MAX_RUN_S = 1.0
MAX_TRAILERS_BYTES = 8 << 10
MALFORMED = "request: the bytes are not a message of this method; use its .proto"
_WIRE, _BUILT, _LABELLED = 0, 1, 2
_OWN = "/edgephi.v1."


def run(data: bytes) -> None:
    """
    Make the call that an input stands for.

    Raises:
        AssertionError: If it does not end as it must; with what the server raised as its cause.
    """
    stack, draw = _stack(), Draw(data)
    path = draw.one_of(sorted(stack.requests))
    how = draw.byte()
    metadata: Metadata = ()
    if how & _LABELLED:
        metadata = (("x-request-id", draw.text()), ("traceparent", draw.text()), ("authorization", draw.text()))
    kind = stack.requests[path]
    if how & _BUILT:
        built = kind()
        fill(built, draw)
        wire = built.SerializeToString()
    else:
        wire = draw.rest()
    request: Message | None = None
    with contextlib.suppress(DecodeError):
        request = kind.FromString(wire)
    started_s = time.process_time()
    outcome = stack.call(path, wire, metadata)
    took_s = time.process_time() - started_s
    assert took_s < MAX_RUN_S, f"{path} took {took_s:.1f} s for {len(wire)} bytes"
    _check(path, request, outcome)


def seeds() -> Iterator[bytes]:
    """Yield inputs to begin with: a valid request of each kind on the wire, a broken one, and some choices."""
    methods = sorted(_stack().requests)
    for path, request in _valid():
        method = bytes([methods.index(path)])
        yield method + bytes([_WIRE]) + request.SerializeToString()
        yield method + bytes([_WIRE | _LABELLED]) + request.SerializeToString()
    chance = random.Random(0)
    for index in range(len(methods)):
        yield bytes([index, _WIRE, 0xFF])
        yield bytes([index, _WIRE]) + b"\x12\x00" * 1500
        for size in (16, 64, 256, 1024):
            yield bytes([index, _BUILT]) + chance.randbytes(size)


def close() -> None:
    """Close what :func:`run` has opened."""
    if _stack.cache_info().currsize:
        _stack().close()
        _stack.cache_clear()


@functools.cache
def _stack() -> Stack:
    return Stack()


def _valid() -> list[tuple[str, Message]]:
    sampling = sampling_pb2.SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=7,
        max_tokens=16,
        stop=["end", MARK],
        logprobs=3,
    )
    chat = generation_service_pb2.ChatRequest(model="tiny", sampling=sampling)
    count = generation_service_pb2.CountTokensRequest()
    for index, role in enumerate((1, 2, 3, 2)):
        for messages in (chat.messages, count.chat.messages):
            messages.add(role=role, content=f"{MARK} {index}")
    complete = generation_service_pb2.CompleteRequest(model="models/tiny", prompt=f"{MARK} go", sampling=sampling)
    requests: dict[str, list[Message]] = {
        f"{_OWN}GenerationService/Chat": [chat],
        f"{_OWN}GenerationService/Complete": [complete],
        f"{_OWN}GenerationService/CountTokens": [count, generation_service_pb2.CountTokensRequest(prompt=MARK)],
    }
    stack = _stack()
    for path, fields in (
        (f"{_OWN}ModelService/ListModels", {"page_size": 3, "page_token": "b2Zmc2V0OjE="}),
        (f"{_OWN}ModelService/GetModel", {"name": "models/tiny"}),
        (f"{_OWN}DeviceService/WatchState", {"interval": {"seconds": 1, "nanos": 5}}),
        ("/grpc.health.v1.Health/Check", {"service": "readiness"}),
        ("/grpc.health.v1.Health/Watch", {"service": "liveness"}),
    ):
        kind: Any = stack.requests[path]
        requests[path] = [kind(**fields)]
    return [(path, request) for path in requests for request in requests[path]]


def _check(path: str, request: Message | None, outcome: Outcome) -> None:
    _check_log(outcome)
    size = sum(len(key) + len(value) + 32 for key, value in outcome.trailers)
    assert size <= MAX_TRAILERS_BYTES, f"{size} bytes of trailers"
    assert len(outcome.message.encode()) <= 512, f"a message of {len(outcome.message)} characters"
    if request is None:
        end = (outcome.code, outcome.message, outcome.num_responses)
        assert end == (grpc.StatusCode.INVALID_ARGUMENT, MALFORMED, 0), f"malformed bytes end with {end}"
    names = (getattr(request, name, "") for name in ("model", "name", "page_token", "service"))
    if not any(MARK in name for name in names):
        labels = {value for key, value in outcome.trailers if key == "x-request-id"}
        # A caller's own id is told back; it is no text of a prompt.
        if not any(MARK in str(label) for label in labels):
            assert MARK.encode() not in outcome.said, "a text of the request is in what is said of it"
    if outcome.code is grpc.StatusCode.OK:
        assert outcome.num_responses >= 1, "OK and no response"
    else:
        assert outcome.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), outcome.code
        assert outcome.num_responses == 0, "a refusal after a response"
        assert outcome.message, "a refusal without a word"
    if outcome.accepted is not None:
        _check_accepted(request, outcome.accepted)


def _check_log(outcome: Outcome) -> None:
    for level, event, fields in outcome.log:
        if level == "error":
            error = fields.get("exc_info")
            raise AssertionError(f"{event}: {error!r}") from error
    ends = [fields for _, event, fields in outcome.log if event == "request.finished"]
    assert len(ends) == 1, f"the end of the call was logged {len(ends)} times"


def _check_accepted(request: Any, accepted: EngineRequest) -> None:
    """Hold what the engine was given against what was asked, by the contract and not by the table of bounds."""
    tokenizer = _stack().tokenizer
    num_control = sum(token in tokenizer.control_ids for token in accepted.prompt)
    if isinstance(request, generation_service_pb2.ChatRequest):
        assert 1 <= len(request.messages) <= 1024, f"{len(request.messages)} messages"
        assert all(message.role in (1, 2, 3) for message in request.messages), "an unknown role"
        assert request.messages[-1].role == 2, "the last message is not the user's"
        assert num_control == 2 * len(request.messages) + 2, "a text has become a control token"
    else:
        assert request.prompt, "an empty prompt"
        assert num_control == 1, "a text has become a control token"
    assert len(request.model.encode()) <= 160, "a long name"
    asked = request.sampling
    assert not accepted.sampling.violations(), "sampling out of its bounds"
    assert len(asked.stop) <= 16, "more stop strings than there may be"
    assert all(1 <= len(stop) <= 256 for stop in asked.stop), "a stop string of a length that may not be"
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "logprobs", "repetition_penalty"):
        if asked.HasField(name):
            assert getattr(accepted.sampling, name) == getattr(asked, name), f"{name} is not what was asked"
    if asked.HasField("max_tokens"):
        assert accepted.max_tokens == asked.max_tokens, "max_tokens is not what was asked"


def _plant_bounds() -> None:
    """Nothing is checked against its bounds any more."""
    converter.violations = lambda *_: []  # type: ignore[attr-defined]


def _plant_decode() -> None:
    """Bytes that are no message are gRPC's to refuse."""

    def parse(data: bytes, deserialize: Callable[[bytes], Any]) -> Any:
        return deserialize(data)

    calls._safe = lambda deserialize: functools.partial(parse, deserialize=deserialize)


def _plant_leak() -> None:
    """A refusal quotes the text that it refuses."""
    checked = limits.Text.problem

    def problem(self: limits.Text, value: str) -> str | None:
        found = checked(self, value)
        return None if found is None else f"{found}, not {value[:40]!r}"

    limits.Text.problem = problem  # type: ignore[method-assign]


def _plant_crash() -> None:
    """A rare value of one field raises what is no error of ours."""
    checked = limits.Number.problem

    def problem(self: limits.Number, value: float) -> str | None:
        if self.unit == "" and math.isnan(value):
            raise ZeroDivisionError
        return checked(self, value)

    limits.Number.problem = problem  # type: ignore[method-assign]


def _plant_slow() -> None:
    """Many violations take long."""
    checked = limits.violations

    def violations(message: Message, prefix: str = "") -> Any:
        found = checked(message, prefix)
        end_s = time.process_time() + (MAX_RUN_S if len(found) > 4 else 0.0)
        while time.process_time() < end_s:
            pass
        return found

    converter.violations = violations  # type: ignore[attr-defined]


PLANTS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "bounds": _plant_bounds,
        "crash": _plant_crash,
        "decode": _plant_decode,
        "leak": _plant_leak,
        "slow": _plant_slow,
    }
)
"""Faults to plant before the first input, which the fuzzer must find."""
