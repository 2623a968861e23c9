"""
What computes: from a description that can travel to an engine over a loaded backend.

Owns the choice of the backend. The same functions serve an engine in this process and one in a process of its own
(edgephi.cli.engine_process), which must not load what only the front needs: nothing here knows text or gRPC.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgephi.errors import ConfigError

if TYPE_CHECKING:
    from edgephi.artifact.manifest import Progress
    from edgephi.engine.core import Engine, EngineConfig
    from edgephi.isolation.remote_loop import RemoteLoop
    from edgephi.runtime.fake import FakeBackend

FAKE_STEP_S = 0.02
FAKE_PAGE_TOKENS = 16
FAKE_KV_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSetup:
    """
    An engine without a model: every answer is a script.

    Attributes:
        vocab_size: Token ids are below it.
        context_tokens: Longest prompt and answer together.
        script: Token ids of the answer.
        end_id: Follows it.
    """

    vocab_size: int
    context_tokens: int
    script: tuple[int, ...]
    end_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """
    What to load; see ``edgephi.cli.compose.ServiceOptions`` for the options.

    Attributes:
        model_path: The model's folder.
        fake: What to answer instead of computing; None to compute.
        max_context_tokens: Longest prompt and answer together; None for all that fits.
    """

    model_path: str
    fake: FakeSetup | None
    level: str | None
    kv_tokens: int | None
    kv_dtype: str
    threads: int | None
    max_running: int
    prefill_chunk_tokens: int
    mixed_chunk_tokens: int
    max_draft_tokens: int
    max_context_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """
    What was loaded; None where nothing is computed.

    Attributes:
        context_tokens: Longest prompt and answer together.
        page_tokens: Tokens a page.
        num_pages: Pages for all requests together.
        threads: Threads that compute.
        cpus: Cores they run on; empty for any.
        level: Instruction-set level of the compiled model.
        digest: The model's.
        kv_dtype: Element type of cached keys and values.
        weights_bytes: Size of the mapped weights.
        kv_bytes: Size of the pages.
    """

    context_tokens: int
    page_tokens: int
    num_pages: int
    threads: int | None = None
    cpus: tuple[int, ...] = ()
    level: str | None = None
    digest: str | None = None
    kv_dtype: str | None = None
    weights_bytes: int | None = None
    kv_bytes: int | None = None


class Closable(Protocol):
    """What holds the model's memory."""

    def close(self) -> None:
        """Release it."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, who closes its backend after it, and what was loaded."""

    engine: Engine
    owner: Closable
    description: EngineDescription


def load_engine(setup: EngineSetup, progress: Progress | None = None) -> LoadedEngine:
    """
    Load a model in this process; one that was not compiled for this machine is compiled first.

    Raises:
        EdgephiError: As ``edgephi.cli.compose.open_service`` does.
    """
    from edgephi.engine.core import Engine, EngineConfig

    config = EngineConfig(
        max_running=setup.max_running,
        prefill_chunk_tokens=setup.prefill_chunk_tokens,
        mixed_chunk_tokens=setup.mixed_chunk_tokens,
        max_draft_tokens=setup.max_draft_tokens,
        max_context_tokens=setup.max_context_tokens,
    )
    if setup.fake is not None:
        fake = _fake_backend(setup, setup.fake)
        engine = Engine(fake, config)
        return LoadedEngine(engine, fake, _description(engine))
    return _tvm_engine(setup, config, progress)


def start_engine_process(setup: EngineSetup) -> RemoteLoop:
    """Start a process that loads an engine; its loop's ``wait_loaded`` waits for it and its description."""
    import msgspec

    from edgephi.isolation.remote_loop import RemoteLoop

    # -P: what lies in the working directory is no part of this program.
    command = (sys.executable, "-P", "-m", "edgephi.cli.engine_process")
    return RemoteLoop(command, msgspec.msgpack.encode(setup))


def _tvm_engine(setup: EngineSetup, config: EngineConfig, progress: Progress | None) -> LoadedEngine:
    from edgephi.engine.core import Engine
    from edgephi.profile.machine.isa import host_arch, host_features, supported_levels
    from edgephi.runtime.model import RuntimeOptions, load_model

    if setup.level is not None:
        # Before compiling, which would take its time and then be refused.
        levels = [level.name for level in supported_levels(host_features(), host_arch())]
        if setup.level not in levels:
            raise ConfigError(f"target is {setup.level!r}; this CPU runs {', '.join(levels) or 'none of the levels'}")
    runtime = RuntimeOptions(
        level=setup.level, kv_dtype=setup.kv_dtype, kv_tokens=setup.kv_tokens, threads=setup.threads
    )
    model = load_model(Path(setup.model_path), runtime, progress=progress)
    try:
        engine = Engine(model.backend, config)
    except BaseException:
        model.close()
        raise
    description = _description(
        engine,
        threads=model.threads,
        cpus=model.thread_plan.cpus or (),
        level=model.bundle.level,
        digest=model.bundle.model_digest,
        kv_dtype=model.bundle.kv_dtype,
        weights_bytes=model.bundle.weights.nbytes,
        kv_bytes=model.backend.kv_bytes,
    )
    return LoadedEngine(engine, model, description)


def _fake_backend(setup: EngineSetup, fake: FakeSetup) -> FakeBackend:
    from edgephi.runtime.fake import FakeBackend

    kv_tokens = setup.kv_tokens if setup.kv_tokens is not None else FAKE_KV_TOKENS
    return FakeBackend(
        vocab_size=fake.vocab_size,
        page_size=FAKE_PAGE_TOKENS,
        num_pages=-(-kv_tokens // FAKE_PAGE_TOKENS),
        max_context_tokens=fake.context_tokens,
        step_delay_s=FAKE_STEP_S,
        script=fake.script,
        eos_token_id=fake.end_id,
    )


def _description(engine: Engine, **known: Any) -> EngineDescription:
    return EngineDescription(
        context_tokens=engine.context_tokens,
        page_tokens=engine.spec.page_size,
        num_pages=engine.spec.num_pages,
        **known,
    )
