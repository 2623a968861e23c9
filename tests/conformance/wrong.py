"""
Servers that get something wrong on purpose, one for each kind of case: the negative controls.

Each function spoils servers that are made after it, for as long as the patch lasts, and returns arguments for them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from tests.hostile.options import with_changes

from edgephi.engine.request import FinishReason
from edgephi.errors import ModelNotFound
from edgephi.generation.generator import Generator
from edgephi.generation.request import Delta, GenerationEvent
from edgephi.server import app, calls, converter, generation, interceptors, status, stream_buffer
from edgephi.server.channel_options import channel_options
from edgephi.server.device import DeviceHandler
from edgephi.server.health import Health
from edgephi.server.settings import ServerSettings
from edgephi.server.tokenizing import TokenizingQueue
from edgephi.v1 import device_service_pb2

Arguments = Mapping[str, Any]


def empty_plan(patch: pytest.MonkeyPatch) -> Arguments:
    """Answer with a message that lacks its content."""

    async def get_plan(*_: Any) -> device_service_pb2.GetPlanResponse:
        return device_service_pb2.GetPlanResponse()

    patch.setattr(DeviceHandler, "GetPlan", get_plan)
    return {}


def small_messages(_: pytest.MonkeyPatch) -> Arguments:
    """Take less than what the contract allows."""
    return {"max_message_bytes": 64 << 10}


def large_messages(_: pytest.MonkeyPatch) -> Arguments:
    """Take one byte more than what is set."""
    return {"max_message_bytes": (256 << 10) + 1}


def compression(patch: pytest.MonkeyPatch) -> Arguments:
    """Unpack what is compressed, as gRPC does by default."""

    def options(settings: ServerSettings, **facts: Any) -> list[tuple[str, int]]:
        return [option for option in channel_options(settings, **facts) if "compression" not in option[0]]

    patch.setattr(app, "channel_options", options)
    return {}


def request_id(patch: pytest.MonkeyPatch) -> Arguments:
    """Give every call the same id."""
    patch.setattr(interceptors, "_request_id", lambda _: "0" * 32)
    return {}


def code(patch: pytest.MonkeyPatch) -> Arguments:
    """Say NOT_FOUND with another code."""
    row = dataclasses.replace(status.row_of(ModelNotFound()), code=grpc.StatusCode.UNKNOWN)
    patch.setattr(status, "STATUS_TABLE", {**status.STATUS_TABLE, ModelNotFound: row})
    return {}


def ascii_text(patch: pytest.MonkeyPatch) -> Arguments:
    """Drop what is not ASCII from the text of a status."""
    clip = status._clip
    patch.setattr(status, "_clip", lambda text, size: clip(text, size).encode("ascii", "ignore").decode())
    return {}


def answer_to_anything(patch: pytest.MonkeyPatch) -> Arguments:
    """Answer methods that do not exist."""

    class Anything(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            async def answer(*_: Any) -> bytes:
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    add = app.Server._add_services

    def add_services(server: app.Server) -> None:
        add(server)
        server._server.add_generic_rpc_handlers((Anything(),))

    patch.setattr(app.Server, "_add_services", add_services)
    return {}


def malformed(patch: pytest.MonkeyPatch) -> Arguments:
    """Leave malformed requests to gRPC."""
    patch.setattr(calls, "_safe", lambda deserialize: deserialize)
    return {}


def little_room(patch: pytest.MonkeyPatch) -> Arguments:
    """Refuse what comes while another text is read."""
    patch.setattr(app, "TokenizingQueue", functools.partial(TokenizingQueue, max_bytes=64 << 10))
    return {}


def early_refusal(patch: pytest.MonkeyPatch) -> Arguments:
    """Refuse calls as long as the program holds more than may run, though its clients were told that they ended."""
    patch.setattr(app, "channel_options", with_changes({"grpc.http2.max_deallocating_streams": None}))
    return {}


def text(patch: pytest.MonkeyPatch) -> Arguments:
    """Change one character of an answer."""
    make = converter._delta
    patch.setattr(converter, "_delta", lambda event: make(Delta(text=event.text.replace("door", "floor"))))
    return {}


def no_reflection(_: pytest.MonkeyPatch) -> Arguments:
    """Serve no reflection."""
    return {"reflection": False}


def no_cancel(patch: pytest.MonkeyPatch) -> Arguments:
    """Go on with answers that nobody reads."""

    def cancel(_: Generator, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        pass

    patch.setattr(Generator, "cancel", cancel)
    patch.setattr(generation, "CANCEL_WAIT_S", 0.1)  # or the calls outlive the test
    return {}


def lost_tokens(patch: pytest.MonkeyPatch) -> Arguments:
    """Lose a token where deltas are joined."""
    put = stream_buffer.StreamBuffer.put

    def lossy(buffer: stream_buffer.StreamBuffer, event: GenerationEvent) -> bool:
        if isinstance(event, Delta) and len(buffer._waiting) >= stream_buffer.MAX_APART:
            event = dataclasses.replace(event, text="")
        return put(buffer, event)

    patch.setattr(stream_buffer.StreamBuffer, "put", lossy)
    return {}


def endless_buffer(patch: pytest.MonkeyPatch) -> Arguments:
    """Keep any amount for a reader."""
    patch.setattr(stream_buffer.StreamBuffer.__init__, "__defaults__", (1 << 30,))
    return {}


def health(patch: pytest.MonkeyPatch) -> Arguments:
    """Say that nothing is served."""
    patch.setattr(Health, "set", lambda self, name, is_serving: self._is_serving.update({name: False}))
    return {}


def open_door(_: pytest.MonkeyPatch) -> Arguments:
    """Ask nobody for a token."""
    return {"tokens": None}
