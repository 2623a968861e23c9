"""
Calls of real stubs, each read on a thread of its own from its begin to its end.

Owns what was received of a call. Does not know what should have been.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # publishes no stubs

from edgephi.v1 import generation_pb2, generation_service_pb2, sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

Request = generation_service_pb2.ChatRequest


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended: its status, the server's reason with it, and of an answer its finish reason and tokens."""

    code: grpc.StatusCode
    reason: str | None = None
    finish: str | None = None
    output_tokens: int = 0


class Call:
    """One chat. Begun at once; its thread ends with it."""

    def __init__(
        self,
        channel: grpc.Channel,
        request: Request,
        *,
        metadata: tuple[tuple[str, str], ...] = (),
        timeout_s: float | None = None,
    ) -> None:
        self._changed = threading.Condition()
        self._parts: list[str] = []
        self._end: End | None = None
        self._call: Any = GenerationServiceStub(channel).Chat(request, metadata=metadata, timeout=timeout_s)
        self._thread = threading.Thread(target=self._read, name="stateful-call")
        self._thread.start()

    @property
    def text(self) -> str:
        """What was received so far."""
        with self._changed:
            return "".join(self._parts)

    @property
    def num_parts(self) -> int:
        """How many deltas were received so far."""
        with self._changed:
            return len(self._parts)

    @property
    def end(self) -> End | None:
        """How it ended, None as long as it has not."""
        with self._changed:
            return self._end

    def cancel(self) -> None:
        """Cancel it."""
        self._call.cancel()

    def wait(self, num_parts: int | None, timeout_s: float) -> bool:
        """Wait for so many parts or the end, or for the end alone; return whether it came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._end is not None or (num_parts is not None and len(self._parts) >= num_parts), timeout_s
            )

    def join(self) -> None:
        """Cancel it and wait for its thread."""
        self._call.cancel()
        self._thread.join()

    def _read(self) -> None:
        final: generation_pb2.Final | None = None
        try:
            for response in self._call:
                assert final is None, "a message after the last one"
                if response.HasField("delta"):
                    with self._changed:
                        self._parts.append(response.delta.text)
                        self._changed.notify_all()
                elif response.HasField("final"):
                    final = response.final
        except grpc.RpcError as failed:
            error: Any = failed
            end = End(error.code(), reason_of(error))
        else:
            finish = None if final is None else generation_pb2.FinishReason.Name(final.finish_reason)
            end = End(grpc.StatusCode.OK, None, finish, 0 if final is None else final.usage.output_tokens)
        with self._changed:
            self._end = end
            self._changed.notify_all()


def chat(text: str, max_tokens: int | None = None) -> Request:
    """Return a chat of one message."""
    sampling = sampling_pb2.SamplingParams(max_tokens=max_tokens)
    message = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=text)
    return Request(messages=[message], sampling=sampling)


def reason_of(error: Any) -> str | None:
    """Return ErrorInfo.reason of a status, None where the server did not make it."""
    data = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if data is None:
        return None
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(data).details[0].Unpack(info)
    return str(info.reason)
