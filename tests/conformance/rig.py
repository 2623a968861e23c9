"""
What a case of conformance works with: a client stack, the server it calls, and the words for both.

Owns the names of methods and the reading of statuses. What is expected is in call_cases.py, stream_cases.py and
service_cases.py, under the names of gRPC's own list of interoperability cases where it has the case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # publishes no stubs
from tests.conformance.stacks import Seen, Stack, decoded
from tests.server.conftest import Pki, Running

CHAT, COMPLETE, COUNT = (f"/edgephi.v1.GenerationService/{name}" for name in ("Chat", "Complete", "CountTokens"))
GET_MODEL = "/edgephi.v1.ModelService/GetModel"
GET_PLAN, WATCH_STATE = (f"/edgephi.v1.DeviceService/{name}" for name in ("GetPlan", "WatchState"))
HEALTH_CHECK, HEALTH_WATCH = (f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch"))
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MODEL = "models/tiny-phi3"
GO: Mapping[str, Any] = MappingProxyType({"messages": [{"role": "ROLE_USER", "content": "Go"}]})
DETAILS_KEY = "grpc-status-details-bin"
ORDER_KEYS = ("options", "tls", "descriptors", "while_paused", "target")


@dataclass(frozen=True, slots=True)
class Rig:
    """
    A client stack and the server it calls.

    Attributes:
        stack: Makes the calls.
        running: The server.
        pki: Certificates, for the case that needs them.
        num_copies: Calls at once in the case of many.
    """

    stack: Stack
    running: Running
    pki: Pki
    num_copies: int

    def calls(self, *specs: dict[str, Any], **order: Any) -> list[Seen]:
        """Make calls one after the other on one new channel; the order's other keys are in grpcio_client.py."""
        paused = order.pop("while_paused", None)
        return self.stack.run({"target": self.running.target, "calls": specs, **order}, while_paused=paused)

    def call(self, method: str, request: Mapping[str, Any] | None = None, **spec: Any) -> Seen:
        """Make one call on a channel of its own."""
        order = {name: spec.pop(name) for name in ORDER_KEYS if name in spec}
        (seen,) = self.calls({"method": method, "requests": [dict(request or {})], **spec}, **order)
        return seen

    def is_idle_within(self, seconds: float) -> bool:
        """Whether the server has dropped all work by then."""
        return wait_for(self.running.is_idle, seconds)


Expect = Callable[[Rig], None]


def wait_for(is_so: Callable[[], bool], seconds: float) -> bool:
    """Return whether something is so by then."""
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.001)
    return True


def status_of(seen: Seen) -> Any:
    """Return the google.rpc.Status that came with a failure."""
    return status_pb2.Status.FromString(decoded(seen.trailer(DETAILS_KEY)))


def reason_of(seen: Seen) -> str:
    """Return the reason in the ErrorInfo that came with a failure."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status_of(seen).details)
    reason: str = info.reason
    return reason
