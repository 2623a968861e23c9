"""
An engine process with a fake backend that dies or hangs when a request asks for it.

A prompt that begins with a fault's token and then a number n meets it in the n-th forward that the request has a part
in, the first being 1. Run as ``python engine_program.py DESCRIPTOR``.
"""

from __future__ import annotations

import ctypes
import enum
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np

from edgephi import errors
from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.isolation.channel import Channel
from edgephi.isolation.child import OpenedEngine, serve
from edgephi.runtime.fake import FakeBackend

VOCAB_SIZE = 1000
PAGE_TOKENS = 8
NUM_PAGES = 128
CONTEXT_TOKENS = 256


class Fault(enum.IntEnum):
    """The token that asks for it."""

    KILL = 900
    SEGFAULT = 901
    STOP = 902  # SIGSTOP: no thread runs any more
    HANG = 903  # a forward that does not end, while other threads go on
    EXIT = 904
    RAISE = 905  # an exception in the backend, which the engine survives
    BREAK = 906  # an exception in the engine thread, which it does not
    EAT = 907  # takes memory without end


class Options(msgspec.Struct, frozen=True):
    """What a test may choose."""

    step_delay_s: float = 0.0
    max_running: int = 4
    max_waiting: int = 8
    load_error: str | None = None  # class of edgephi.errors
    load_fault: Fault | None = None
    num_progress: int = 0
    log_line: str | None = None
    num_good_loads: int | None = None  # how many processes load before one fails
    count_file: str | None = None


class FaultyBackend(FakeBackend):
    """The real fake, with requests that harm it."""

    def __init__(self, step_delay_s: float) -> None:
        super().__init__(
            vocab_size=VOCAB_SIZE,
            page_size=PAGE_TOKENS,
            num_pages=NUM_PAGES,
            max_context_tokens=CONTEXT_TOKENS,
            step_delay_s=step_delay_s,
        )
        # Forwards until a sequence meets its fault, by its first page, which it has for all its life.
        self._due: dict[int, tuple[Fault, int]] = {}

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Count, and meet what is due; otherwise compute."""
        for index, page in enumerate(batch.block_table[:, 0].tolist()):
            row = int(batch.row_start[index])
            if batch.positions[row] == 0:
                self._due.pop(page, None)
                if batch.tokens[row] >= Fault.KILL:
                    self._due[page] = Fault(int(batch.tokens[row])), int(batch.tokens[row + 1])
            if page in self._due:
                fault, count = self._due[page]
                self._due[page] = fault, count - 1
                if count == 1:
                    meet(fault)
        return super().forward(batch)


def meet(fault: Fault) -> None:
    """Do what the fault says."""
    if fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault is Fault.SEGFAULT:
        ctypes.string_at(0)
    elif fault is Fault.STOP:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault is Fault.HANG:
        time.sleep(1e6)
    elif fault is Fault.EXIT:
        os._exit(3)
    elif fault is Fault.RAISE:
        raise ValueError("a fault of the backend")
    elif fault is Fault.BREAK:
        raise _Break
    elif fault is Fault.EAT:
        eaten = []
        while True:
            eaten.append(np.ones(1 << 20))


class _Break(BaseException):
    """Passes by everything that handles the backend's exceptions."""


def open_engine(options: bytes, progress: Callable[[str, int, int], None]) -> OpenedEngine:
    """Make the engine, or fail to."""
    chosen = msgspec.msgpack.decode(options, type=Options)
    if chosen.log_line is not None:
        logging.getLogger("test.engine").warning("%s", chosen.log_line)
    for index in range(chosen.num_progress):
        progress("compiling", index + 1, chosen.num_progress)
    if _is_bad_load(chosen):
        if chosen.load_fault is not None:
            meet(chosen.load_fault)
        kind = getattr(errors, chosen.load_error or "", ValueError)
        raise kind("a message with 3 numbers: 1, 2, 3")
    config = EngineConfig(
        max_running=chosen.max_running, max_waiting=chosen.max_waiting, prefill_chunk_tokens=8, mixed_chunk_tokens=4
    )
    return OpenedEngine(Engine(FaultyBackend(chosen.step_delay_s), config), b"facts of a test")


def _is_bad_load(options: Options) -> bool:
    if options.load_error is None and options.load_fault is None:
        return False
    if options.count_file is None:
        return True
    with open(options.count_file, "a+") as file:  # noqa: PTH123 - appends and reads
        file.write("x")
        file.seek(0)
        return len(file.read()) > (options.num_good_loads or 0)


if __name__ == "__main__":
    serve(Channel(socket.socket(fileno=int(sys.argv[1]))), open_engine)
