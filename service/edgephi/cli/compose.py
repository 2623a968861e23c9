"""
The composition root: from the name of a model to a generator that answers.

Owns which backend is used, which objects are made and the order in which they are closed. Knows no command line. Every
heavy import is inside a function, so that ``edgephi --help`` loads neither NumPy nor TVM nor gRPC.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgephi.errors import ConfigError, InvalidRequest, ModelInvalid, ModelNotFound

if TYPE_CHECKING:
    from edgephi.artifact.config import ModelConfig
    from edgephi.artifact.manifest import Progress
    from edgephi.cli.engines import Closable, EngineDescription, EngineSetup
    from edgephi.engine.admission import AdmissionConfig
    from edgephi.engine.admitting_loop import AdmittingLoop
    from edgephi.engine.loop import EngineLoop
    from edgephi.engine.request import SamplingParams
    from edgephi.generation.generator import Generator
    from edgephi.isolation.remote_loop import RemoteLoop
    from edgephi.profile.plan import Plan
    from edgephi.profile.verification import ExpectedSpeed
    from edgephi.server.app import Served
    from edgephi.server.model_info import ModelInfo
    from edgephi.text.tokenizer import Tokenizer

POCKET = "pocket"
"""Name of the model inside the package; it needs no folder and no download."""

FAKE_ANSWER = (
    "This is the fake engine: no model is loaded and every answer is this one. "
    "It streams, stops and can be cancelled as a real one does."
)
_NOT_IN_ID = re.compile(r"[^a-z0-9._-]+")


class EngineKind(enum.Enum):
    """What computes the answers."""

    TVM = "tvm"  # the compiled model
    FAKE = "fake"  # a fixed text, for trying clients without a model


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """
    What to load and how much to do at once.

    Attributes:
        model: A model's folder, the name of an installed one, or ``pocket``.
        engine: What computes.
        level: Instruction-set level; None for the best this CPU has.
        kv_tokens: Tokens of keys and values for all requests together; None for the runtime's choice.
        kv_dtype: Element type of cached keys and values, one of ``artifact.bundle.KV_DTYPES``.
        threads: Threads that compute; None for the runtime's choice.
        max_running: Most requests at once.
        prefill_chunk_tokens: Most prompt tokens in a step of their own.
        mixed_chunk_tokens: Most prompt tokens in a step that other requests decode in.
        max_draft_tokens: Most guessed tokens checked beside a request's next one; 0 for none. Answers stay the same.
        default_max_tokens: Longest answer of a request that names no limit; None for a fair share of ``kv_tokens``.
        isolated: Whether the engine is a process of its own, so that its death is not this process's.
        admission: How many requests may wait, in a queue that is fair between clients; None for the engine's own.
    """

    model: str = POCKET
    engine: EngineKind = EngineKind.TVM
    level: str | None = None
    kv_tokens: int | None = None
    kv_dtype: str = "int8"
    threads: int | None = None
    max_running: int = 1
    prefill_chunk_tokens: int = 64
    mixed_chunk_tokens: int = 16
    max_draft_tokens: int = 8
    default_max_tokens: int | None = None
    isolated: bool = False
    admission: AdmissionConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """
    A plan to serve by.

    Attributes:
        plan: The plan; its context is a limit of each request.
        expected: What predicts the speed of any load.
        source: Where its durations come from, for people.
    """

    plan: Plan
    expected: ExpectedSpeed
    source: str

    def apply_to(self, options: ServiceOptions) -> ServiceOptions:
        """Return *options* with what was planned."""
        plan = self.plan
        return dataclasses.replace(
            options,
            kv_tokens=plan.num_pages * plan.page_tokens,
            kv_dtype=options.kv_dtype if plan.kv_dtype is None else plan.kv_dtype.value,
            threads=plan.num_threads,
            max_running=plan.max_running,
            prefill_chunk_tokens=plan.prefill_chunk_tokens,
            mixed_chunk_tokens=plan.mixed_chunk_tokens,
        )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found: its name for people, and its folder."""

    name: str
    path: Path


def resolve_model(name_or_path: str) -> ModelSource:
    """
    Find a model by the name of an installed one, by ``pocket``, or by its folder.

    Raises:
        ModelNotFound: If there is none; the message lists what is installed.
        ConfigError: If ``EDGEPHI_MODELS`` is not an absolute path.
    """
    from edgephi import pocket
    from edgephi.artifact.config import MLC_CONFIG
    from edgephi.artifact.store import find_model

    if name_or_path in (POCKET, pocket.MODEL_NAME):
        path = pocket.model_dir()
        if not (path / MLC_CONFIG).is_file():
            raise ModelNotFound(
                f"the {POCKET} model is not part of this installation; "
                "name a model folder, or fetch one with `edgephi model pull phi3-mini-4k`"
            )
        return ModelSource(pocket.MODEL_NAME, path)
    path = find_model(name_or_path)
    return ModelSource(path.resolve().name, path)


class LocalService:
    """
    A loaded model with its engine, in this process or one of its own, and its generator in this one.

    Lives from :func:`open_service` to :meth:`close`. Whoever opened it closes it, after everything that uses the
    generator has stopped.

    Attributes:
        generator: Answers requests; any thread.
        loop: The engine, to watch.
        info: What is said of the model.
        plan: How much it does at once.
        threads: Threads that compute; None where nothing is computed.
        level: Instruction-set level of the compiled model; None for the fake engine.
        expected: What predicts the speed of any load; None where nothing was planned.
    """

    def __init__(
        self,
        generator: Generator,
        loop: EngineLoop | RemoteLoop | AdmittingLoop,
        backend: Closable | None,
        *,
        info: ModelInfo,
        plan: Plan,
        threads: int | None,
        level: str | None,
        expected: ExpectedSpeed | None = None,
    ) -> None:
        self.generator = generator
        self.loop = loop
        self.info = info
        self.plan = plan
        self.threads = threads
        self.level = level
        self.expected = expected
        self._backend = backend

    @property
    def kv_tokens(self) -> int:
        """Tokens of keys and values for all requests together."""
        return self.plan.num_pages * self.plan.page_tokens

    def served(self) -> Served:
        """Return what a server needs to know; it must stop before this service is closed."""
        from edgephi.profile.machine.probe import probe
        from edgephi.server.app import Served

        return Served(
            generator=self.generator,
            engine=self.loop,
            model=self.info,
            device=probe(),
            plan=self.plan,
            expected=self.expected,
        )

    def close(self) -> None:
        """
        Stop the engine, then release the backend. Calling it again does nothing.

        Raises:
            EngineFailed: If a forward is stuck; the backend is then left alone, for the forward still uses it.
        """
        self.loop.close()
        if self._backend is not None:
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_service(
    options: ServiceOptions, *, planned: ServingPlan | None = None, progress: Progress | None = None
) -> LocalService:
    """
    Load a model and start its engine; a model that was not compiled for this machine is compiled first.

    Args:
        options: What to load.
        planned: Plan that *options* were taken from (:meth:`ServingPlan.apply_to`); None where nothing was planned.
        progress: Called while the model is compiled.

    Raises:
        ModelNotFound: If there is no such model.
        ModelInvalid: If its files cannot be used.
        CompileFailed: If it had to be compiled and that failed.
        BundleInvalid: If what was compiled is damaged or needs another CPU.
        InsufficientMemory: If weights and pages exceed the memory that is free.
        ConfigError: If an option is out of bounds.
    """
    from edgephi.artifact.config import load_config
    from edgephi.engine.admitting_loop import AdmittingLoop
    from edgephi.generation.generator import Generator

    source = resolve_model(options.model)
    config = load_config(source.path)
    defaults = _sampling_defaults(source, config)
    with contextlib.ExitStack() as on_failure:
        if options.isolated:
            opened = _open_isolated(source, config, options, planned, on_failure, progress)
        else:
            opened = _open_here(source, config, options, planned, on_failure, progress)
        loaded = opened.description
        plan = _plan(loaded, options)
        if planned is not None:
            plan = _with_predictions(plan, planned.plan)
        loop = _with_queue(opened.loop, options, planned)
        on_failure.callback(loop.close)
        generator = Generator(
            opened.tokenizer,
            loop,
            context_tokens=loaded.context_tokens,
            eos_token_ids=frozenset(config.eos_token_ids),
            defaults=defaults,
            default_max_tokens=plan.default_max_tokens,
            require_place=loop.require_place if isinstance(loop, AdmittingLoop) else None,
        )
        service = LocalService(
            generator,
            loop,
            opened.owner,
            info=_model_info(source, config, loaded.context_tokens, loaded.digest),
            plan=plan,
            threads=loaded.threads,
            level=loaded.level,
            expected=None if planned is None else planned.expected,
        )
        on_failure.pop_all()
    return service


@dataclass(frozen=True, slots=True)
class _Opened:
    """A running engine, who closes what it computes with, and what is needed to talk to it."""

    loop: EngineLoop | RemoteLoop
    owner: Closable | None
    description: EngineDescription
    tokenizer: Tokenizer


def _open_here(
    source: ModelSource,
    config: ModelConfig,
    options: ServiceOptions,
    planned: ServingPlan | None,
    on_failure: contextlib.ExitStack,
    progress: Progress | None,
) -> _Opened:
    from edgephi.cli.engines import load_engine
    from edgephi.engine.loop import EngineLoop
    from edgephi.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_model_dir(source.path)
    loaded = load_engine(_setup(source, config, options, planned, tokenizer), progress)
    on_failure.callback(loaded.owner.close)
    loop = EngineLoop(loaded.engine)
    on_failure.callback(loop.close)
    return _Opened(loop, loaded.owner, loaded.description, tokenizer)


def _open_isolated(
    source: ModelSource,
    config: ModelConfig,
    options: ServiceOptions,
    planned: ServingPlan | None,
    on_failure: contextlib.ExitStack,
    progress: Progress | None,
) -> _Opened:
    import msgspec

    from edgephi.cli.engines import EngineDescription, start_engine_process
    from edgephi.text.tokenizer import Tokenizer

    # Only the fake engine's answer needs it before the process starts, which then loads at the same time.
    tokenizer = Tokenizer.from_model_dir(source.path) if options.engine is EngineKind.FAKE else None
    loop = start_engine_process(_setup(source, config, options, planned, tokenizer))
    on_failure.callback(loop.close)
    tokenizer = tokenizer or Tokenizer.from_model_dir(source.path)
    import edgephi.server.app  # noqa: F401 - a quarter of a second that nobody then waits for

    description = msgspec.msgpack.decode(loop.wait_loaded(progress), type=EngineDescription)
    return _Opened(loop, None, description, tokenizer)


def _with_queue(
    loop: EngineLoop | RemoteLoop, options: ServiceOptions, planned: ServingPlan | None
) -> EngineLoop | RemoteLoop | AdmittingLoop:
    """Put the queue in front of a loop, where one is wanted."""
    from edgephi.engine.admitting_loop import AdmittingLoop
    from edgephi.engine.service_times import ServiceRates

    if options.admission is None:
        return loop
    start: ServiceRates | None = None
    predicted = None if planned is None else planned.plan.predicted
    if predicted is not None and predicted.prefill_tokens_per_s and predicted.each_full_tokens_per_s:
        start = ServiceRates(
            prefill_tokens_per_s=predicted.prefill_tokens_per_s, decode_tokens_per_s=predicted.each_full_tokens_per_s
        )
    return AdmittingLoop(loop, options.admission, start=start)


def _setup(
    source: ModelSource,
    config: ModelConfig,
    options: ServiceOptions,
    planned: ServingPlan | None,
    tokenizer: Tokenizer | None,
) -> EngineSetup:
    from edgephi.cli.engines import EngineSetup, FakeSetup

    fake: FakeSetup | None = None
    if options.engine is EngineKind.FAKE:
        assert tokenizer is not None
        fake = FakeSetup(
            vocab_size=config.vocab_size,
            context_tokens=config.context_window_size,
            script=tuple(tokenizer.encode(FAKE_ANSWER)),
            end_id=tokenizer.special_id("<|end|>"),
        )
    return EngineSetup(
        model_path=str(source.path),
        fake=fake,
        level=options.level,
        kv_tokens=options.kv_tokens,
        kv_dtype=options.kv_dtype,
        threads=options.threads,
        max_running=options.max_running,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        mixed_chunk_tokens=options.mixed_chunk_tokens,
        max_draft_tokens=options.max_draft_tokens,
        max_context_tokens=None if planned is None else planned.plan.context_tokens,
    )


def _sampling_defaults(source: ModelSource, config: ModelConfig) -> SamplingParams:
    """Return the sampling values of the model's files; refuse a model whose own values no request could use."""
    from edgephi.engine.request import SamplingParams

    published = config.generation
    defaults = SamplingParams(
        temperature=published.temperature,
        top_p=published.top_p,
        repetition_penalty=published.repetition_penalty,
        presence_penalty=published.presence_penalty,
        frequency_penalty=published.frequency_penalty,
    )
    try:
        defaults.validate()
    except InvalidRequest as error:
        raise ModelInvalid(f"{source.path}: the configuration's sampling values are out of bounds: {error}") from error
    return defaults


def _model_info(source: ModelSource, config: ModelConfig, context_tokens: int, digest: str | None) -> ModelInfo:
    from edgephi.artifact.config import ARCHITECTURE
    from edgephi.artifact.manifest import read_manifest
    from edgephi.artifact.parameters import phi3_parameters
    from edgephi.server.model_info import ModelInfo

    return ModelInfo(
        model_id=model_id(source.name),
        display_name=source.name,
        architecture=ARCHITECTURE,
        quantization=config.quantization or "none",
        context_tokens=context_tokens,
        num_parameters=sum(parameter.num_elements for parameter in phi3_parameters(config)),
        max_context_tokens=config.max_position,
        sliding_window_tokens=config.sliding_window,
        vocab_size=config.vocab_size,
        size_bytes=read_manifest(source.path).total_bytes,
        digest=digest,
    )


def model_id(name: str) -> str:
    """Return the contract's form of a model's name: lower case, and ``-`` for what it does not allow."""
    return _NOT_IN_ID.sub("-", name.lower()).lstrip("._-")[:127] or "model"


def _plan(loaded: EngineDescription, options: ServiceOptions) -> Plan:
    from edgephi.profile.plan import KvDtype, Plan, PlanMemory

    default_max_tokens = options.default_max_tokens
    if default_max_tokens is None:
        # Pages for the whole answer are reserved, so an unbounded one would keep others waiting.
        default_max_tokens = max(1, loaded.num_pages * loaded.page_tokens // options.max_running)
    elif default_max_tokens < 1:
        raise ConfigError(f"default_max_tokens is {default_max_tokens}; must be at least 1")
    return Plan(
        context_tokens=loaded.context_tokens,
        max_running=options.max_running,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        mixed_chunk_tokens=options.mixed_chunk_tokens,
        default_max_tokens=min(default_max_tokens, loaded.context_tokens),
        page_tokens=loaded.page_tokens,
        num_pages=loaded.num_pages,
        kv_dtype=None if loaded.kv_dtype is None else KvDtype(loaded.kv_dtype),
        num_threads=loaded.threads,
        cpus=loaded.cpus,
        memory=PlanMemory(weights_bytes=loaded.weights_bytes, kv_bytes=loaded.kv_bytes),
    )


def _with_predictions(loaded: Plan, planned: Plan) -> Plan:
    """Return what was loaded with what was planned to come of it."""
    return dataclasses.replace(
        planned,
        context_tokens=loaded.context_tokens,
        max_running=loaded.max_running,
        prefill_chunk_tokens=loaded.prefill_chunk_tokens,
        mixed_chunk_tokens=loaded.mixed_chunk_tokens,
        default_max_tokens=loaded.default_max_tokens,
        page_tokens=loaded.page_tokens,
        num_pages=loaded.num_pages,
        num_threads=loaded.num_threads,
        cpus=loaded.cpus,
    )
