"""
The client programs of two gRPC stacks, which make calls by order and say what they saw.

Owns the processes and the form of what was seen. The orders are described in grpcio_client.py; what is expected of a
server is the cases' business.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STACKS = ("grpcio", "grpc-js")
REPLY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    One call as its client saw it; binary metadata and bytes are in base 64.

    Attributes:
        code: Name of the status code.
        details: Text of the status.
        messages: Responses in order, as JSON.
        initial: Metadata before the first response.
        trailing: Metadata with the status.
        elapsed_s: From the start of the call to its status.
    """

    code: str
    details: str
    messages: list[Any]
    initial: list[list[str]]
    trailing: list[list[str]]
    elapsed_s: float

    def trailer(self, key: str) -> str:
        """Return the one value of a trailer."""
        values = [value for name, value in self.trailing if name == key]
        assert len(values) == 1, f"{len(values)} trailers {key} with {self.code}: {self.details}"
        return values[0]


class Stack:
    """
    The client program of one stack, from construction to :meth:`close`.

    Args:
        name: One of ``STACKS``.
        descriptors: File with the descriptors of the standard services.
    """

    def __init__(self, name: str, descriptors: Path) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*_command(name), str(descriptors)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"read-{name}")
        self._reader.start()
        assert self._next() == {"ready": True}

    @property
    def is_alive(self) -> bool:
        """Whether the program runs."""
        return self._process.poll() is None

    def run(self, order: dict[str, Any], *, while_paused: Callable[[], None] | None = None) -> list[Seen]:
        """
        Give an order and return what was seen of its calls.

        Args:
            order: As in grpcio_client.py.
            while_paused: Called when a stream is left unread; the client reads on when it returns.
        """
        self._write(json.dumps(order))
        reply = self._next()
        failure: BaseException | None = None
        while "paused" in reply:
            assert while_paused is not None
            try:
                while_paused()
            except BaseException as error:  # noqa: BLE001 - raised below, when the order has had its reply
                failure = error
            self._write("")
            reply = self._next()
        if failure is not None:
            raise failure
        assert "seen" in reply, f"the {self.name} client failed: {reply}"
        return [Seen(**call) for call in reply["seen"]]

    def close(self) -> None:
        """End the program; a call in progress is dropped."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put('{"ended": true}')

    def _next(self) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = json.loads(self._lines.get(timeout=REPLY_S))
        except queue.Empty:
            self._process.kill()
            raise AssertionError(f"the {self.name} client said nothing for {REPLY_S:g} s") from None
        return reply


def absence(name: str) -> str | None:
    """Return why a stack cannot run here, or None if it can."""
    if name == "grpcio":
        return None
    if shutil.which("node") is None:
        return "node is not installed; install nodejs and npm, then `make test` sets the rest up"
    if not (HERE / "node_modules" / "@grpc" / "grpc-js").is_dir():
        return "@grpc/grpc-js is not installed; `make test` sets it up, or `npm ci` in tests/conformance"
    return None


def standard_descriptors() -> bytes:
    """Return the descriptors of the standard services, as the packages of gRPC have them."""
    return descriptor_set([module.DESCRIPTOR.serialized_pb for module in (health_pb2, reflection_pb2)])


def descriptor_set(files: list[bytes]) -> bytes:
    """Join the descriptors of files, each after those it imports, into one FileDescriptorSet."""
    found = {file.name: file for file in map(descriptor_pb2.FileDescriptorProto.FromString, files)}
    ordered: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(name: str) -> None:
        for imported in found[name].dependency:
            add(imported)
        ordered.setdefault(name, found[name])

    for name in found:
        add(name)
    return descriptor_pb2.FileDescriptorSet(file=ordered.values()).SerializeToString()


def decoded(text: str) -> bytes:
    """Return the bytes of a value in base 64, padded or not."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


def _command(name: str) -> list[str]:
    if name == "grpcio":
        return [sys.executable, "-m", "tests.conformance.grpcio_client"]
    return ["node", str(HERE / "client.mjs")]
