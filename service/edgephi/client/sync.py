"""
The blocking client.

Owns one channel; its streams borrow it. Threads may share a client, not a stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgephi.client import requests
from edgephi.client.errors import ClientError, DeadlinePassed, ModelUnknown, ServerUnavailable, cut, error_of
from edgephi.client.events import Delta, Event, FinalInfo, Response, event_of
from edgephi.client.options import DEFAULT_TARGET, TlsOptions, channel_arguments, credentials, tls_options
from edgephi.client.requests import Chat, Sampling
from edgephi.v1 import device_pb2, device_service_pb2, generation_service_pb2, model_service_pb2
from edgephi.v1.device_service_pb2_grpc import DeviceServiceStub
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub
from edgephi.v1.model_service_pb2_grpc import ModelServiceStub

READY_POLL_S = 0.2


class _Call(Protocol):
    def __iter__(self) -> Iterator[Response]: ...

    def cancel(self) -> Any: ...


class ChatStream:
    """
    One answer as it is made; iterate over it for pieces of text.

    Lives until its end, :meth:`cancel` or the end of its ``with`` block. One thread reads it; any may cancel it.

    Attributes:
        final: The end of the answer; None until it has come, and for ever after a cancel.
    """

    def __init__(self, call: _Call) -> None:
        self.final: FinalInfo | None = None
        self._call = call
        self._is_cancelled = False
        self._has_received = False
        self._events = self._read_events()

    def __iter__(self) -> Iterator[str]:
        """
        Yield the answer's text as it comes.

        Raises:
            ClientError: As the tree in ``edgephi.client.errors`` says; nothing after :meth:`cancel`.
        """
        for event in self._events:
            if isinstance(event, Delta) and event.text:
                yield event.text

    def events(self) -> Iterator[Event]:
        """Yield everything that comes: progress, pieces with their log-probabilities, the end."""
        return self._events

    def read(self) -> str:
        """Wait for the end and return the text not yet iterated over."""
        return "".join(self)

    def cancel(self) -> None:
        """Stop the answer: the server drops it and iteration ends. Calling it again, or after the end, does nothing."""
        if self.final is None:
            self._is_cancelled = True
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _read_events(self) -> Iterator[Event]:
        try:
            for response in self._call:
                event = event_of(response)
                if event is None:
                    continue
                self._has_received = True
                if isinstance(event, FinalInfo):
                    self.final = event
                yield event
        except grpc.RpcError as error:
            if self._is_cancelled:
                return
            raise error_of(error, has_received=self._has_received) from error
        if self.final is None and not self._is_cancelled:
            raise cut()


class Client:
    """
    A connection to one server, or to all servers behind one name. Use it in a ``with`` block, or close it.

    Args:
        target: ``host:port``, or any name gRPC resolves.
        tls: Files for an encrypted connection; None for a plain one.
        ca: Short for ``tls=TlsOptions(ca=...)``, with ``cert`` and ``key``: the authority of the server's certificate.
        cert: This client's certificate, for servers that ask for one.
        key: Its private key.
        token: Sent with every call; needs ``tls`` or ``ca``.
        timeout_s: Longest time for one call in seconds; None for none.
        can_retry: Whether calls that a server could not take are tried again by themselves.

    Raises:
        ConfigError: If a file cannot be read or the options contradict each other.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsOptions | None = None,
        ca: Path | str | None = None,
        cert: Path | str | None = None,
        key: Path | str | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
        can_retry: bool = True,
    ) -> None:
        tls = tls_options(tls, ca=ca, cert=cert, key=key)
        made = credentials(tls, token)
        arguments = channel_arguments(tls, can_retry=can_retry)
        self._channel = (
            grpc.insecure_channel(target, arguments) if made is None else grpc.secure_channel(target, made, arguments)
        )
        self._target = target
        self._timeout_s = timeout_s
        self._generation = GenerationServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._device = DeviceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def chat(
        self, messages: Chat, *, model: str = "", timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> ChatStream:
        """
        Answer a chat.

        Args:
            messages: A text of the user, or ``(role, content)`` pairs, oldest first.
            model: Empty for the served one.
            timeout_s: Longest time for this answer in seconds; the client's by default.
            sampling: How to draw tokens and what ends the answer.

        Raises:
            InvalidRequest: If the arguments cannot be written as a request. What the server refuses is raised
                when the stream is read.
        """
        request = requests.chat_request(messages, model=model, **sampling)
        return ChatStream(self._generation.Chat(request, timeout=self._limit(timeout_s)))

    def complete(
        self, prompt: str, *, model: str = "", timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> ChatStream:
        """Continue a raw prompt, without a chat template; otherwise as :meth:`chat`."""
        request = requests.complete_request(prompt, model=model, **sampling)
        return ChatStream(self._generation.Complete(request, timeout=self._limit(timeout_s)))

    def count_tokens(self, messages: Chat | None = None, *, prompt: str | None = None, model: str = "") -> int:
        """Return how many tokens a chat, or a raw prompt, takes with all that is put around it."""
        request = requests.count_request(messages, prompt=prompt, model=model)
        response: generation_service_pb2.CountTokensResponse = self._unary(self._generation.CountTokens, request)
        return response.tokens

    def models(self) -> tuple[model_service_pb2.Model, ...]:
        """Return all models of the server, in order of name."""
        found: list[model_service_pb2.Model] = []
        request = model_service_pb2.ListModelsRequest()
        while True:
            response: model_service_pb2.ListModelsResponse = self._unary(self._models.ListModels, request)
            found += response.models
            if not response.next_page_token:
                return tuple(found)
            request.page_token = response.next_page_token

    def model(self, name: str) -> model_service_pb2.Model:
        """Return one model by its resource name, ``models/{model}``."""
        request = model_service_pb2.GetModelRequest(name=name)
        response: model_service_pb2.GetModelResponse = self._unary(self._models.GetModel, request)
        return response.model

    def device(self) -> device_pb2.Device:
        """Return what the server's machine is."""
        request = device_service_pb2.GetDeviceRequest()
        response: device_service_pb2.GetDeviceResponse = self._unary(self._device.GetDevice, request)
        return response.device

    def plan(self) -> device_pb2.Plan:
        """Return the plan the server follows."""
        request = device_service_pb2.GetPlanRequest()
        response: device_service_pb2.GetPlanResponse = self._unary(self._device.GetPlan, request)
        return response.plan

    def watch(self, interval_s: float = 1.0) -> Iterator[device_pb2.LiveState]:
        """
        Yield how the server is doing, at once and then every ``interval_s`` seconds (0.1 to 60), until it stops.

        Raises:
            ClientError: When the server refuses the interval, or goes away.
        """
        call: Any = self._device.WatchState(requests.watch_request(interval_s))
        try:
            for response in call:
                yield response.state
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    def health(self, service: str = "") -> bool:
        """
        Return whether a service is served: ``""`` for all, a service's full name, or ``liveness``.

        Raises:
            ServerUnavailable: If the server cannot be reached.
        """
        return self._is_serving(service, self._timeout_s)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """
        Wait until the server takes requests.

        Raises:
            ServerUnavailable: If it does not within ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        last: ClientError | None = None
        hint: str | None = None
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                if self._is_serving("", remaining_s):
                    return
                last, hint = None, None
            except (ServerUnavailable, DeadlinePassed) as error:
                last, hint = error, error.hint or hint
            time.sleep(READY_POLL_S)
        state = "is not ready" if last is None else "cannot be reached"
        raise ServerUnavailable(
            f"{self._target} {state} after {timeout_s:g} s", code="UNAVAILABLE", hint=hint
        ) from last

    def close(self) -> None:
        """Close the connection; streams still running are cut. Calling it again does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s

    def _is_serving(self, service: str, timeout_s: float | None) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = self._unary(self._health.Check, request, timeout_s)
        except ModelUnknown:
            return False  # the health service's way to say that it knows no such service
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _unary(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        try:
            return method(request, timeout=self._limit(timeout_s))
        except grpc.RpcError as error:
            raise error_of(error) from error
