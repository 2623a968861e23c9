"""A whole server on a local socket: the real engine over the fake backend, and a small real tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import pytest
import structlog
from prometheus_client import CollectorRegistry

from edgephi.cli.certificates import Identity, new_authority, new_client, new_server
from edgephi.engine.admission import AdmissionConfig
from edgephi.engine.admitting_loop import AdmittingLoop
from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import SamplingParams
from edgephi.generation.generator import EventSink, Generator
from edgephi.generation.request import GenerationRequest
from edgephi.profile.machine.probe import DeviceFacts, LiveFacts, probe, probe_live
from edgephi.profile.plan import Plan, PlanMemory
from edgephi.profile.verification import ExpectedSpeed
from edgephi.runtime.fake import FakeBackend
from edgephi.server.app import Served, Server
from edgephi.server.model_info import ModelInfo
from edgephi.server.private_files import write_file
from edgephi.server.settings import ServerSettings
from edgephi.text.tokenizer import Tokenizer

T = TypeVar("T")
ANSWER = "The robot moves to the left and stops at the door."


def _load_text_fixtures() -> ModuleType:
    # Test folders are no packages, so the sibling's fixtures are loaded from their file.
    path = Path(__file__).parents[1] / "text" / "conftest.py"
    spec = importlib.util.spec_from_file_location("text_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_text_fixtures = _load_text_fixtures()
tokenizer_json = _text_fixtures.tokenizer_json
model_dir = _text_fixtures.model_dir
tokenizer = _text_fixtures.tokenizer


class FaultyBackend(FakeBackend):
    """The real fake, whose next forward raises what a test has put into ``fault``."""

    fault: Exception | None = None
    _left: int | None = None

    def hold_after(self, num_forwards: int) -> threading.Event:
        """Let so many more forwards pass; those after them wait until the returned event is set."""
        self._go_on, self._left = threading.Event(), num_forwards
        return self._go_on

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Raise the fault once, or compute."""
        if self._left is not None:
            self._left -= 1
            assert self._left >= 0 or self._go_on.wait(30)
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        return super().forward(batch)


class FaultyGenerator(Generator):
    """The real one, which first raises what a test has put into ``faults``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.faults: list[BaseException] = []
        self.num_started = 0

    def start(self, request: GenerationRequest, sink: EventSink) -> None:
        """Raise the next fault, or start the request."""
        self.num_started += 1
        if self.faults:
            raise self.faults.pop(0)
        super().start(request, sink)


@dataclasses.dataclass
class Running:
    """A server that listens, and what a test looks at."""

    server: Server
    engine: EngineLoop | AdmittingLoop
    generator: FaultyGenerator
    log: list[MutableMapping[str, Any]]
    settings: ServerSettings
    backend: FaultyBackend

    def fail_next_forward(self, fault: Exception) -> None:
        """Make the engine's next step fail."""
        self.backend.fault = fault

    @property
    def target(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self.server.port}"

    def finished(self, method: str) -> list[MutableMapping[str, Any]]:
        """Lines that were logged at the end of calls of a method."""
        return [line for line in self.log if line["event"] == "request.finished" and line["method"] == method]

    async def wait_finished(self, method: str, count: int) -> list[MutableMapping[str, Any]]:
        """Wait until so many calls of a method have been logged: a client may see the end of one a moment before."""
        async with asyncio.timeout(5):
            while len(self.finished(method)) < count:
                await asyncio.sleep(0.005)
        return self.finished(method)

    async def page(self) -> dict[str, float]:
        """Return the metrics page: the value of each series, by its name and labels as they are written."""
        url = f"http://127.0.0.1:{self.server.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        rows = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    def is_idle(self) -> bool:
        """Whether no request is live and no page is owned."""
        stats = self.engine.stats()
        return (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


@dataclasses.dataclass
class Pki:
    """Two authorities, and what they sign for the tests of TLS; files are in PEM."""

    folder: Path
    authority: Identity
    other: Identity

    def server(self, name: str = "server", **changes: Any) -> dict[str, Path]:
        """Write a server's certificate for 127.0.0.1 and its key; return the settings that name them."""
        arguments = {"names": ["127.0.0.1", "localhost"], "now": datetime.now(UTC), "lifetime": timedelta(days=90)}
        made = new_server(self.authority, **{**arguments, **changes})
        return {"tls_cert": self.write(f"{name}.pem", made.certificate_pem), "tls_key": self._key(name, made)}

    def client(self, name: str = "robot", *, signer: Identity | None = None, **changes: Any) -> dict[str, Path]:
        """Write a client's certificate and key; return the arguments of a client that name them."""
        arguments = {"now": datetime.now(UTC), "lifetime": timedelta(days=90)}
        made = new_client(signer or self.authority, name, **{**arguments, **changes})
        return {"cert": self.write(f"{name}.pem", made.certificate_pem), "key": self._key(name, made)}

    @property
    def ca(self) -> Path:
        """The authority that is trusted."""
        return self.write("ca.pem", self.authority.certificate_pem)

    def write(self, name: str, data: bytes) -> Path:
        """Write a file and return where."""
        path = self.folder / name
        write_file(path, data)
        return path

    def _key(self, name: str, made: Identity) -> Path:
        return self.write(f"{name}.key", made.key_pem)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """Authorities that were made a year ago, in a folder of their own."""
    a_year_ago = datetime.now(UTC) - timedelta(days=365)
    authorities = (new_authority(name, now=a_year_ago) for name in ("authority", "other"))
    return Pki(tmp_path / "pki", *authorities)


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Running]]
ServeInThread = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def device() -> DeviceFacts:
    """The facts of the machine the tests run on."""
    return probe()


@pytest.fixture
def serve(tokenizer: Tokenizer, device: DeviceFacts) -> Serve:
    """
    Return a context manager that runs a server on the test's own event loop.

    Its arguments: ``step_delay_s`` and ``script`` of the backend, ``max_running`` and ``max_waiting`` of the
    engine, ``admission`` for a queue in front of it, ``is_ready=False`` not to wait for the first token, ``planned``
    to replace fields of the plan, ``expected`` to predict speed, ``probe_live`` to read sensors, and any setting of
    the server.
    """

    @contextlib.asynccontextmanager
    async def run(
        *,
        step_delay_s: float = 0.0,
        script: str | None = ANSWER,
        max_running: int = 4,
        max_waiting: int = 32,
        admission: AdmissionConfig | None = None,
        is_ready: bool = True,
        planned: Mapping[str, Any] = MappingProxyType({}),
        expected: ExpectedSpeed | None = None,
        probe_live: Callable[[], LiveFacts] = probe_live,
        **settings: Any,
    ) -> AsyncIterator[Running]:
        end_id = tokenizer.special_id("<|end|>")
        backend = FaultyBackend(
            vocab_size=tokenizer.vocab_size,
            page_size=8,
            num_pages=128,
            max_batch_tokens=64,
            max_context_tokens=512,
            step_delay_s=step_delay_s,
            script=None if script is None else tokenizer.encode(script),
            eos_token_id=end_id,
        )
        config = EngineConfig(max_running=max_running, max_waiting=max_waiting, prefill_chunk_tokens=16)
        core = Engine(backend, config)
        lines = structlog.testing.LogCapture()
        logger = structlog.wrap_logger(structlog.PrintLogger(), processors=[lines])
        with contextlib.closing(backend), _loop(core, admission) as engine:
            generator = FaultyGenerator(
                tokenizer,
                engine,
                context_tokens=core.context_tokens,
                eos_token_ids=frozenset({end_id}),
                defaults=SamplingParams(temperature=0.0),
                require_place=engine.require_place if isinstance(engine, AdmittingLoop) else None,
            )
            served = Served(
                generator=generator,
                engine=engine,
                model=ModelInfo(
                    model_id="tiny-phi3",
                    display_name="Tiny Phi-3",
                    architecture="phi3",
                    quantization="none",
                    context_tokens=core.context_tokens,
                    vocab_size=tokenizer.vocab_size,
                ),
                device=device,
                plan=dataclasses.replace(
                    Plan(
                        context_tokens=core.context_tokens,
                        max_running=max_running,
                        prefill_chunk_tokens=16,
                        mixed_chunk_tokens=8,
                        default_max_tokens=256,
                        page_tokens=8,
                        num_pages=128,
                        memory=PlanMemory(kv_bytes=4096),
                    ),
                    **planned,
                ),
                expected=expected,
                probe_live=probe_live,
            )
            chosen = ServerSettings(**{"port": 0, **settings})
            server = Server(served, chosen, registry=CollectorRegistry(), log=logger)
            await server.start()
            try:
                if is_ready:
                    await server.wait_ready()
                yield Running(server, engine, generator, lines.entries, chosen, backend)
            finally:
                await server.stop(0)

    return run


@pytest.fixture
def serve_in_thread(serve: Serve) -> ServeInThread:
    """Return a context manager that runs a server on a thread of its own, for blocking clients; same arguments."""

    @contextlib.contextmanager
    def run(**arguments: Any) -> Iterator[Running]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="test-server")
        thread.start()

        def call(coroutine: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

        try:
            manager = serve(**arguments)
            running = call(_enter(manager))
            try:
                yield running
            finally:
                call(_leave(manager))
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return run


def _loop(engine: Engine, admission: AdmissionConfig | None) -> EngineLoop | AdmittingLoop:
    loop = EngineLoop(engine)
    return loop if admission is None else AdmittingLoop(loop, admission)


async def _enter(manager: contextlib.AbstractAsyncContextManager[Running]) -> Running:
    return await manager.__aenter__()


async def _leave(manager: contextlib.AbstractAsyncContextManager[Running]) -> None:
    await manager.__aexit__(None, None, None)
