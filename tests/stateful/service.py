"""
A whole server on another thread's event loop, over a backend that echoes prompts and stands still until let go on.

Owns the wiring, which is the composition root's but for the backend, and the gate through which every forward passes:
while it is shut nothing begins and nothing ends, so that a model can say what must be so.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import threading
from collections.abc import Coroutine, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import structlog
from prometheus_client import CollectorRegistry

from edgephi.engine.admission import AdmissionConfig
from edgephi.engine.admitting_loop import AdmittingLoop
from edgephi.engine.backend import F32Array, ForwardBatch, I32Array
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import FinishReason, RequestId, SamplingParams
from edgephi.generation.generator import Generator
from edgephi.pocket import model_dir
from edgephi.profile.machine.probe import DeviceFacts, probe
from edgephi.profile.plan import Plan, PlanMemory
from edgephi.runtime.fake import FakeBackend
from edgephi.server.app import Served, Server
from edgephi.server.model_info import ModelInfo
from edgephi.server.settings import ServerSettings
from edgephi.text.tokenizer import Tokenizer

T = TypeVar("T")
MAX_RUNNING = 2
MAX_WAITING = 3
CONTEXT_TOKENS = 128
MODEL_ID = "echo"
_PAGE_TOKENS = 8
_START_S = 60.0


@functools.cache
def tokenizer() -> Tokenizer:
    """The packaged model's tokenizer."""
    return Tokenizer.from_model_dir(model_dir())


@functools.cache
def _device() -> DeviceFacts:
    return probe()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all services of this process: gRPC may lose an event beside one of a loop that was closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stateful-servers", daemon=True)
    thread.start()

    def close() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(close)
    return loop


class EchoBackend(FakeBackend):
    """
    Answers a chat with the text of its last message, read back from the pages that hold it, then ends.

    Forwards wait for :meth:`let_pass`, or for :meth:`open`. Any thread may call these.

    Attributes:
        max_sequences: Most sequences in one forward so far.
        swaps: A fault to plant: sequences of one forward get each other's next token.
    """

    def __init__(self) -> None:
        self._end_id = tokenizer().special_id("<|end|>")
        self._user_id = tokenizer().special_id("<|user|>")
        super().__init__(
            vocab_size=tokenizer().vocab_size,
            page_size=_PAGE_TOKENS,
            # For two answers of usual length; the second of two long ones waits for pages and not for a place.
            num_pages=3 * CONTEXT_TOKENS // _PAGE_TOKENS // 2,
            max_batch_tokens=32,
            max_context_tokens=CONTEXT_TOKENS,
        )
        self._gate = threading.Condition()
        self._num_allowed: int | None = None
        self._is_at_gate = False
        self.max_sequences = 0
        self.swaps = False

    def open(self) -> None:
        """Let all forwards pass from now on."""
        with self._gate:
            self._num_allowed = None
            self._gate.notify_all()

    def shut(self) -> None:
        """Let none pass from now on."""
        with self._gate:
            self._num_allowed = 0

    @property
    def is_at_gate(self) -> bool:
        """Whether a forward waits, so that all before it is done and told."""
        with self._gate:
            return self._is_at_gate and self._num_allowed == 0

    def let_pass(self) -> None:
        """Let the forward that waits pass, if one does; no later one profits."""
        with self._gate:
            if self._is_at_gate and self._num_allowed == 0:
                self._num_allowed = 1
                self._gate.notify_all()
                self._gate.wait_for(lambda: self._num_allowed != 1)

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Wait at the gate, then compute."""
        with self._gate:
            self._is_at_gate = True
            self._gate.wait_for(lambda: self._num_allowed != 0)
            self._is_at_gate = False
            if self._num_allowed is not None:
                self._num_allowed -= 1
            self._gate.notify_all()
        self.max_sequences = max(self.max_sequences, len(batch.kv_len))
        logits = super().forward(batch)
        return logits[::-1].copy() if self.swaps else logits

    def _hashed(self, history: I32Array) -> F32Array:
        """Return logits of the next token of the echo: each row of them follows from its own sequence alone."""
        tokens = history.tolist()
        logits = super()._hashed(history)
        if self._user_id in tokens:
            begin = len(tokens) - tokens[::-1].index(self._user_id)
            end = tokens.index(self._end_id, begin) if self._end_id in tokens[begin:] else begin
            num_answered = len(tokens) - (end + 2)  # <|end|> <|assistant|>
            text = tokens[begin:end]
            logits[text[num_answered] if 0 <= num_answered < len(text) else self._end_id] = 100.0
        return logits


class HeedfulLoop(AdmittingLoop):
    """
    The real one, which remembers what it was told to cancel.

    Attributes:
        cancelled: Those requests.
        is_deaf: A fault to plant: it does nothing about them.
    """

    def __init__(self, inner: EngineLoop, config: AdmissionConfig) -> None:
        super().__init__(inner, config)
        self.cancelled: set[str] = set()
        self.is_deaf = False

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token."""
        if not self.is_deaf:
            super().cancel(request_id, reason)
        self.cancelled.add(request_id.partition("#")[0])


class Service:
    """
    One server with its engine, from :func:`serving` on. For blocking clients on other threads.

    Attributes:
        backend: Its gate.
        engine: The loop under the server.
        core: The engine itself; look at it only while nothing runs.
        server: The server.
        log: Lines of its log.
    """

    def __init__(self, tokens: Path | None, *, max_waiting: int = MAX_WAITING) -> None:
        self.backend = EchoBackend()
        self.core = Engine(self.backend, EngineConfig(max_running=MAX_RUNNING, prefill_chunk_tokens=16))
        self.engine = HeedfulLoop(EngineLoop(self.core), AdmissionConfig(max_waiting=max_waiting, max_wait_s=1e6))
        self.generator = Generator(
            tokenizer(),
            self.engine,
            context_tokens=CONTEXT_TOKENS,
            eos_token_ids=frozenset({tokenizer().special_id("<|end|>")}),
            defaults=SamplingParams(temperature=0.0),
            default_max_tokens=CONTEXT_TOKENS // 2,
            require_place=self.engine.require_place,
        )
        lines = structlog.testing.LogCapture()
        self.log: list[MutableMapping[str, Any]] = lines.entries
        self._logger = structlog.wrap_logger(structlog.PrintLogger(), processors=[lines])
        self._settings = ServerSettings(port=0, tokens=tokens)
        self._is_closed = False
        self.server: Server = self.run(self._start())
        self.backend.shut()

    @property
    def target(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self.server.port}"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's event loop to its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result(_START_S)

    def stop(self, grace_s: float) -> threading.Thread:
        """Begin to stop; the thread that is returned ends when the server has."""
        thread = threading.Thread(target=lambda: self.run(self.server.stop(grace_s)), name="stateful-stop")
        thread.start()
        return thread

    def close(self) -> None:
        """Stop what still runs and free everything. Calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.backend.open()
        self.run(self.server.stop(0))
        self.engine.close()
        self.backend.close()

    async def _start(self) -> Server:
        plan = Plan(
            context_tokens=CONTEXT_TOKENS,
            max_running=MAX_RUNNING,
            prefill_chunk_tokens=16,
            mixed_chunk_tokens=16,
            default_max_tokens=CONTEXT_TOKENS // 2,
            page_tokens=_PAGE_TOKENS,
            num_pages=self.backend.spec.num_pages,
            memory=PlanMemory(kv_bytes=4096),
        )
        served = Served(
            generator=self.generator,
            engine=self.engine,
            model=ModelInfo(
                model_id=MODEL_ID,
                display_name="Echo",
                architecture="phi3",
                quantization="none",
                context_tokens=CONTEXT_TOKENS,
            ),
            device=_device(),
            plan=plan,
        )
        server = Server(served, self._settings, registry=CollectorRegistry(), log=self._logger)
        await server.start()
        await server.wait_ready()
        return server


@contextlib.contextmanager
def serving(tokens: Path | None = None, *, max_waiting: int = MAX_WAITING) -> Iterator[Service]:
    """Run a service within the block; its gate is shut."""
    service = Service(tokens, max_waiting=max_waiting)
    try:
        yield service
    finally:
        service.close()
