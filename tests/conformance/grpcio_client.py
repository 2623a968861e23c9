"""
Makes the calls it is told to make with grpcio, and says what it saw: ``python -m tests.conformance.grpcio_client``.

The twin of client.mjs. It knows no case and expects nothing. One line of JSON on standard input is one order::

    {"target": "127.0.0.1:1", "calls": [CALL, ...], "options": {...}, "tls": {...}, "descriptors": "base64"}

All but the first two may be absent: options of the channel, which is made anew for each order; files in PEM (``ca``,
``cert``, ``key``); and a FileDescriptorSet to use in place of the contract that is known here. A call is::

    {"method": "/package.Service/Method", "requests": [{...}], "raw": "base64", "metadata": [["key", "value"]],
     "timeout_s": 1.0, "copies": 100, "cancel_after": 1, "pause_after": 1}

Requests are messages as JSON, with ``{"fill": n}`` for a text of so many characters; ``raw`` is sent as it is. Copies
run at once, calls one after the other. After so many messages of a stream, 0 for its begin, it is left unread, which is
told with ``{"paused": true}``, until a line arrives; and after so many it is cancelled. The reply to an order is
``{"seen": [...]}`` with the code, details, messages, metadata and duration of each call.
"""

from __future__ import annotations

import base64
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from edgephi.v1 import device_service_pb2, generation_service_pb2, model_service_pb2

# Importing them is what makes their methods known.
KNOWN = (device_service_pb2, generation_service_pb2, health_pb2, model_service_pb2, reflection_pb2)

Order = dict[str, Any]


class Method(NamedTuple):
    """Which sides of a method stream, and how its messages are written and read."""

    kind: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]


class Seen:
    """What was seen of one call, while it runs."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.messages: list[Any] = []

    def report(self, call: Any) -> dict[str, Any]:
        """Wait for the end of a call and return all of it."""
        code, details = call.code(), call.details()
        return {
            "code": code.name,
            "details": details or "",
            "messages": self.messages,
            "initial": _pairs(call.initial_metadata()),
            "trailing": _pairs(call.trailing_metadata()),
            "elapsed_s": time.monotonic() - self.started,
        }


def main() -> None:
    """Follow orders until standard input ends."""
    _say({"ready": True})
    for line in sys.stdin:
        try:
            _say({"seen": list(_run(json.loads(line)))})
        except Exception as error:  # noqa: BLE001 - whoever gave the order is told
            _say({"failed": repr(error)})


def _run(order: Order) -> Iterator[dict[str, Any]]:
    pool = descriptor_pool.Default() if "descriptors" not in order else _pool(base64.b64decode(order["descriptors"]))
    options = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0, **order.get("options", {})}
    with _channel(order, list(options.items())) as channel:
        for spec in order["calls"]:
            copies = [spec] * spec.get("copies", 1)
            with ThreadPoolExecutor(len(copies)) as threads:
                yield from threads.map(functools.partial(_call, channel, pool), copies)


def _channel(order: Order, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
    tls = order.get("tls")
    if not tls:
        return grpc.insecure_channel(order["target"], options)
    files = [Path(tls[name]).read_bytes() if name in tls else None for name in ("ca", "key", "cert")]
    return grpc.secure_channel(order["target"], grpc.ssl_channel_credentials(*files), options)


def _call(channel: grpc.Channel, pool: descriptor_pool.DescriptorPool, spec: Order) -> dict[str, Any]:
    method = _method(pool, spec)
    requests = [base64.b64decode(spec["raw"])] if "raw" in spec else [_filled(r) for r in spec.get("requests", [{}])]
    make = getattr(channel, method.kind)(spec["method"], method.serialize, method.deserialize)
    metadata = [(key, base64.b64decode(v) if key.endswith("-bin") else v) for key, v in spec.get("metadata", [])]
    options = {"metadata": metadata, "timeout": spec.get("timeout_s")}
    seen = Seen()
    if method.kind == "unary_unary":
        call = make.future(requests[0], **options)
    else:
        call = make(iter(requests) if method.kind.startswith("stream") else requests[0], **options)
    _react(call, 0, spec)
    try:
        if method.kind == "unary_unary":
            seen.messages.append(call.result())
        else:
            for message in call:
                seen.messages.append(message)
                _react(call, len(seen.messages), spec)
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass  # the report has its status
    return seen.report(call)


def _react(call: Any, num_messages: int, spec: Order) -> None:
    if num_messages == spec.get("pause_after"):
        _say({"paused": True})
        sys.stdin.readline()
    if num_messages == spec.get("cancel_after"):
        call.cancel()


def _method(pool: descriptor_pool.DescriptorPool, spec: Order) -> Method:
    service, _, name = spec["method"].removeprefix("/").partition("/")
    try:
        found = pool.FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return Method("unary_unary", bytes, _raw)
    kind = "_".join("stream" if side else "unary" for side in (found.client_streaming, found.server_streaming))
    if "raw" in spec:
        return Method(kind, bytes, _raw)
    request, response = (message_factory.GetMessageClass(side) for side in (found.input_type, found.output_type))
    return Method(
        kind,
        lambda values: request(**values).SerializeToString(),
        lambda data: json_format.MessageToDict(
            response.FromString(data), preserving_proto_field_name=True, descriptor_pool=pool
        ),
    )


def _pool(data: bytes) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


def _filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if isinstance(value, dict):
        return "x" * value["fill"] if "fill" in value else {key: _filled(item) for key, item in value.items()}
    return value


def _raw(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _pairs(metadata: Any) -> list[list[str]]:
    pairs = [[key, _raw(value) if isinstance(value, bytes) else value] for key, value in metadata or ()]
    return sorted(pairs)


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
