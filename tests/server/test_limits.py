"""Every field of every request has a bound that is written in the contract and that holds."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import FieldDescriptor

from edgephi.server.limits import (
    MAX_MESSAGES,
    MAX_TEXT_BYTES,
    REQUEST_BOUNDS,
    Bound,
    Choice,
    Items,
    Nested,
    Number,
    Seconds,
    Text,
    field_key,
    request_fields,
    unbounded_fields,
    violations,
)
from edgephi.v1 import device_service_pb2, generation_pb2, generation_service_pb2, model_service_pb2

PROTO = Path(__file__).parents[2] / "proto"
BUF = Path(sysconfig.get_path("scripts")) / "buf"
SERVICES = tuple(
    service
    for module in (generation_service_pb2, model_service_pb2, device_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
METHODS = {
    method.input_type.name: (f"/{service.full_name}/{method.name}", method.server_streaming)
    for service in SERVICES
    for method in service.methods
}
REQUESTS = tuple(method.input_type for service in SERVICES for method in service.methods)
# Where a field is written in a request, and the rest of the smallest request that is good but for it.
PLACES = {
    "Message": ("ChatRequest", "messages[0].", 'messages { role: ROLE_USER content: "go" }'),
    "Messages": ("CountTokensRequest", "chat.", ""),
    "SamplingParams": ("CompleteRequest", "sampling.", 'prompt: "go"'),
    "ChatRequest": ("ChatRequest", "", 'messages { role: ROLE_USER content: "go" }'),
    "CompleteRequest": ("CompleteRequest", "", 'prompt: "go"'),
    "CountTokensRequest": ("CountTokensRequest", "", 'prompt: "go"'),
    "ListModelsRequest": ("ListModelsRequest", "", ""),
    "GetModelRequest": ("GetModelRequest", "", 'name: "models/tiny-phi3"'),
    "WatchStateRequest": ("WatchStateRequest", "", ""),
}
_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
}
_EDGES = (-(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_DURATIONS = {
    (0, 0): False,
    (0, 99_999_999): False,
    (0, 100_000_000): True,
    (1, 500_000_000): True,
    (60, 0): True,
    (60, 1): False,
    (-1, 0): False,
    (1, -1): False,
    (1, 1_000_000_000): False,
    (0, 2**31 - 1): False,
    (2**63 - 1, 0): False,
    (-(2**63), 0): False,
}


def field_cases(field: FieldDescriptor, bound: Bound) -> Iterator[tuple[Any, bool]]:
    """Yield values of a field at and around its bound, and whether each is within it."""
    match bound:
        case Number(low=low, high=high, above_low=above_low):
            if field.type == FieldDescriptor.TYPE_FLOAT:
                top = 0.0 if high is None else high
                yield from ((float(name), False) for name in ("nan", "inf", "-inf", "1e38", "-1e38"))
                yield from (
                    (low, not above_low),
                    (low - 0.01, False),
                    (top, True),
                    (top + 0.01, False),
                    (1e-30, low <= 0),
                )
                yield -0.0, low < 0 or (low == 0 and not above_low)
                return
            least, most = _INTEGERS[field.type]
            top_integer = most if high is None else int(high)
            for value in {*_EDGES, int(low) - 1, int(low), top_integer, top_integer + 1}:
                if least <= value <= most:
                    yield value, low <= value <= top_integer
        case Text(low=low, high=high, unit=unit):
            yield from (("a" * size, low <= size) for size in range(low + 1))
            yield from (("a" * high, True), ("a" * (high + 1), False), ("\0" * high, True))
            yield "ü" * high, unit == "characters"
            yield "\U0001f916" * (high + 1), False
        case Choice(numbers=numbers):
            yield from ((value, value in numbers) for value in (-(2**31), -1, 0, 1, 2, 3, 4, 99, 2**31 - 1))
        case Seconds():
            yield from _DURATIONS.items()
        case _:
            return


def placed(container: str, name: str, value: Any) -> tuple[Any, str]:
    """Return a request that is good but for one field, and the path of that field."""
    request_name, path, rest = PLACES[container]
    request = _parsed(request_name, rest)
    part = request
    for step in path.rstrip(".").split(".") if path else ():
        part = part.messages[0] if step.startswith("messages") else getattr(part, step)
    if isinstance(value, tuple):
        part.interval.seconds, part.interval.nanos = value
    elif isinstance(value, list):
        getattr(part, name).MergeFrom(value)
    else:
        setattr(part, name, value)
    return request, path + name


def all_cases() -> Iterator[tuple[Any, str, bool]]:
    """Yield requests with one field at or around its bound, the field's path, and whether it is within."""
    for field in request_fields(REQUESTS):
        container, bound = _container(field), REQUEST_BOUNDS[field_key(field)]
        if isinstance(bound, Items):
            yield from _list_cases(field, bound)
            continue
        for value, is_fine in field_cases(field, bound):
            if (container, value) == ("CountTokensRequest", ""):
                continue  # there, an empty prompt is one that was set
            yield *placed(container, field.name, value), is_fine


def _container(field: FieldDescriptor) -> str:
    return field_key(field).partition(".")[0]


def _list_cases(field: FieldDescriptor, bound: Items) -> Iterator[tuple[Any, str, bool]]:
    container = _container(field)
    if isinstance(bound.each, Nested):
        one = generation_pb2.Message(role=generation_pb2.ROLE_USER, content="go")
        for size in (0, bound.high, bound.high + 1):
            request, path = placed(container, field.name, [])
            part = request.chat if container == "Messages" else request
            if container == "Messages":
                part.SetInParent()
            del part.messages[:]
            part.messages.extend([one] * size)
            yield request, path, bound.low <= size <= bound.high
        return
    yield *placed(container, field.name, ["x"] * bound.high), True
    yield *placed(container, field.name, ["x"] * (bound.high + 1)), False
    for value, is_fine in field_cases(field, bound.each):
        request, path = placed(container, field.name, ["x", value])
        yield request, path if is_fine else f"{path}[1]", is_fine


def _parsed(request_name: str, text: str) -> Any:
    kind = next(kind for kind in REQUESTS if kind.name == request_name)
    module = next(m for m in (generation_service_pb2, model_service_pb2, device_service_pb2) if hasattr(m, kind.name))
    return text_format.Parse(text, getattr(module, request_name)())


def test_no_field_of_a_request_is_without_a_bound() -> None:
    """The table names exactly the fields of the contract's requests; one that is left out is found."""
    assert unbounded_fields(REQUESTS) == []
    fields = {field_key(field) for field in request_fields(REQUESTS)}
    assert set(REQUEST_BOUNDS) == fields
    less = {name: bound for name, bound in REQUEST_BOUNDS.items() if name != "SamplingParams.top_k"}
    assert unbounded_fields(REQUESTS, less) == ["SamplingParams.top_k"], "control"


def test_a_field_without_a_bound_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a request with a field that the table does not name fails."""
    less = {name: bound for name, bound in REQUEST_BOUNDS.items() if name != "CompleteRequest.prompt"}
    monkeypatch.setattr("edgephi.server.limits.REQUEST_BOUNDS", less)
    with pytest.raises(KeyError, match=r"CompleteRequest\.prompt"):
        violations(generation_service_pb2.CompleteRequest(prompt="go"))


def test_the_contract_states_every_bound() -> None:
    """The comment of each field of a request has its bound in the words of the table."""
    command = [str(BUF), "build", "--exclude-imports", "--as-file-descriptor-set", "-o", "-#format=binpb"]
    done = subprocess.run(command, cwd=PROTO, capture_output=True, check=True)
    comments: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file:
        by_path = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for index, kind in enumerate(file.message_type):
            for number, field in enumerate(kind.field):
                comments[f"{kind.name}.{field.name}"] = " ".join(by_path[(4, index, 2, number)].split()).lower()
    missing = {name: str(bound) for name, bound in REQUEST_BOUNDS.items() if str(bound) not in comments[name]}
    assert missing == {}


def test_a_value_is_within_its_bound_or_named() -> None:
    """Values at a bound pass, values beyond it are one violation of that field, whose text is short."""
    num_fine = 0
    for request, path, is_fine in all_cases():
        found = violations(request)
        assert [violation.field for violation in found] == ([] if is_fine else [path]), (path, found)
        assert all(len(violation.description) < 120 for violation in found)
        num_fine += is_fine
    assert num_fine > len(REQUEST_BOUNDS)


async def test_every_value_beyond_a_bound_is_refused_before_any_work(serve: Any) -> None:
    """Each is INVALID_ARGUMENT with the field's path, no answer is started, and a good request is answered after it."""
    # Room for the longest texts: the next limit in line would refuse them with RESOURCE_EXHAUSTED.
    settings = {"max_message_bytes": 1 << 20}
    async with serve(**settings) as running, grpc.aio.insecure_channel(running.target) as channel:
        num_started = running.generator.num_started
        for request, path, is_fine in all_cases():
            if is_fine:
                continue
            name, is_stream = METHODS[type(request).__name__]
            make = channel.unary_stream if is_stream else channel.unary_unary
            call: Any = make(name, lambda message: message.SerializeToString(), None)(request)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call.read() if is_stream else call)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, path
            assert re.match(rf"{re.escape(path)}: (is|has) ", caught.value.details() or ""), (path, caught.value)
        assert running.generator.num_started == num_started
        good = generation_service_pb2.CountTokensRequest(prompt="go")
        count = channel.unary_unary(METHODS["CountTokensRequest"][0], lambda message: message.SerializeToString(), None)
        assert await count(good)


def test_a_request_as_long_as_it_may_be_is_read_at_once() -> None:
    """As many messages as there may be, or a list as long as a message of 256 KiB can hold, take milliseconds."""
    full = generation_service_pb2.ChatRequest()
    for _ in range(MAX_MESSAGES):
        full.messages.add(role=generation_pb2.ROLE_USER, content="x" * (MAX_TEXT_BYTES // MAX_MESSAGES))
    longest = generation_service_pb2.ChatRequest.FromString(b"\x12\x00" * (1 << 17))
    for request, num_found in ((full, 0), (longest, 1)):
        started = time.process_time()
        assert len(violations(request)) == num_found
        assert time.process_time() - started < 0.25, "twenty times what it takes"
