"""Loading a model folder into a backend, and logits for checks and notebooks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgephi.artifact.bundle import Bundle, BundleOptions
from edgephi.artifact.config import ModelConfig, load_config
from edgephi.artifact.manifest import Progress
from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch
from edgephi.errors import ConfigError, FieldViolation, InsufficientMemory, InvalidRequest, PromptTooLong
from edgephi.profile.machine.cgroup import read_available_memory, read_limits
from edgephi.profile.machine.cores import read_clusters
from edgephi.profile.machine.probe import read_memory
from edgephi.profile.machine.threads import ThreadPlan, choose_threads
from edgephi.runtime.bundles import ensure_bundle, host_options

if TYPE_CHECKING:
    from edgephi.runtime.tvm_backend import TvmBackend

_ROOT = Path("/")
_DEFAULT_KV_TOKENS = 4096
_DEFAULT_SEQUENCES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """
    How to load a model.

    Attributes:
        level: Instruction-set level; the best this CPU has when None.
        activations: ``int8``, or ``float32`` for exact but slow arithmetic.
        kv_dtype: Element type of cached keys and values: ``int8``, ``float16`` or ``float32``.
        kv_tokens: Tokens of keys and values kept for all streams together; when None, four contexts but at most
            4096 tokens, and at least one context.
        threads: Threads that compute, at most the cores this process may use. When None, chosen for the model and the
            machine by :func:`edgephi.profile.machine.threads.choose_threads`.
    """

    level: str | None = None
    activations: str = "int8"
    kv_dtype: str = "int8"
    kv_tokens: int | None = None
    threads: int | None = None

    def bundle_options(self) -> BundleOptions:
        """Return what must be compiled for these options on this machine."""
        return host_options(self.level, self.activations, self.kv_dtype)


class LoadedModel:
    """
    A model ready to compute, with its backend; close it, or use it as a context manager.

    Attributes:
        path: The model's folder.
        config: What the folder's configuration says.
        bundle: What was compiled.
        backend: What the engine drives.
        thread_plan: Which threads compute, and why.
    """

    def __init__(
        self, path: Path, config: ModelConfig, bundle: Bundle, backend: TvmBackend, thread_plan: ThreadPlan
    ) -> None:
        self.path = path
        self.config = config
        self.bundle = bundle
        self.backend = backend
        self.thread_plan = thread_plan

    @property
    def threads(self) -> int:
        """Number of threads that compute."""
        return self.thread_plan.count

    def logits(self, token_ids: Sequence[int]) -> F32Array:
        """
        Compute the logits after each token of a sequence from its start; for checks, not while an engine runs.

        Args:
            token_ids: At least one id below the vocabulary's size, at most as many as the context and the pages hold.

        Returns:
            (len(token_ids), vocab_size) float32; row i predicts token i + 1.

        Raises:
            InvalidRequest: If an id is out of range or there is none.
            PromptTooLong: If there are more tokens than fit.
        """
        spec = self.backend.spec
        given = np.asarray(token_ids)
        capacity = min(spec.max_context_tokens, spec.num_pages * spec.page_size)
        if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
            raise InvalidRequest(FieldViolation("token_ids", "must be a non-empty sequence of token ids"))
        tokens = given.astype(np.int64)
        if tokens.size > capacity:
            raise PromptTooLong(prompt_tokens=int(tokens.size), max_tokens=0, context_tokens=capacity)
        outside = tokens[(tokens < 0) | (tokens >= spec.vocab_size)]
        if outside.size:
            raise InvalidRequest(
                FieldViolation("token_ids", f"holds {outside[0]}; ids must be 0 to {spec.vocab_size - 1}")
            )
        rows = [
            self.backend.forward(_chunk(tokens, start, min(start + spec.max_batch_tokens, tokens.size), spec))
            for start in range(0, tokens.size, spec.max_batch_tokens)
        ]
        return np.concatenate(rows)

    def close(self) -> None:
        """Release the weights, the pages and the library. Calling it again does nothing."""
        self.backend.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_model(
    path: Path | str, options: RuntimeOptions | None = None, *, progress: Progress | None = None
) -> LoadedModel:
    """
    Load a model folder, compiling it for this machine first where that was not done.

    Example::

        from edgephi.runtime import load_model

        with load_model("models/phi3") as model:
            print(model.logits([1, 32010, 6324]).shape)  # (3, 32064)

    Args:
        path: An MLC-LLM folder.
        options: How to load it.
        progress: Called with a label, bytes done and bytes in all while compiling.

    Raises:
        ConfigError: If an option is out of bounds.
        ModelNotFound: If the folder holds no model.
        ModelInvalid: If its files cannot be read, UnsupportedModel if it is not one we run.
        CompileFailed: If it had to be compiled and that failed.
        BundleInvalid: If what was compiled is damaged or needs another CPU.
        InsufficientMemory: If weights and pages exceed the memory that is free.
        ConfigError: If an option is out of bounds.
    """
    options = options or RuntimeOptions()
    if options.kv_tokens is not None and options.kv_tokens < 1:
        raise ConfigError(f"kv_tokens is {options.kv_tokens}; must be at least 1")
    allowed = sorted(os.sched_getaffinity(0))
    if options.threads is not None and not 1 <= options.threads <= len(allowed):
        raise ConfigError(f"threads is {options.threads}; must be 1 to {len(allowed)}, the cores this process may use")
    model_dir = Path(path)
    config = load_config(model_dir)
    folder, bundle = ensure_bundle(model_dir, options.bundle_options(), progress)
    kv_tokens = options.kv_tokens
    if kv_tokens is None:
        kv_tokens = max(
            config.context_window_size, min(_DEFAULT_SEQUENCES * config.context_window_size, _DEFAULT_KV_TOKENS)
        )
    threads = choose_threads(
        read_clusters(_ROOT),
        allowed=allowed,
        quota=read_limits(_ROOT).cpu_cores,
        weights_bytes=bundle.weights.nbytes,
        requested=options.threads,
    )
    num_pages = -(-kv_tokens // bundle.page_size)
    _check_memory(bundle, num_pages)

    # Here, so that whoever only needs a fake engine or a client never loads TVM.
    from edgephi.runtime.tvm_backend import TvmBackend

    backend = TvmBackend(folder, bundle, num_pages=num_pages, threads=threads)
    return LoadedModel(model_dir, config, bundle, backend, threads)


def kv_bytes_per_token(bundle: Bundle) -> int:
    """Return the bytes of keys and values one token takes."""
    page_bytes = bundle.page_elements * np.dtype(bundle.kv_dtype).itemsize
    return bundle.num_layers * bundle.num_kv_heads * page_bytes // bundle.page_size


def _check_memory(bundle: Bundle, num_pages: int) -> None:
    """Refuse what cannot fit before anything is allocated; the weights count because they must stay in memory."""
    kv = kv_bytes_per_token(bundle) * bundle.page_size * num_pages
    wanted = bundle.weights.nbytes + kv
    known = [n for n in (read_memory(_ROOT).available_bytes, read_available_memory(_ROOT)) if n is not None]
    available = min(known, default=wanted)
    if wanted > available:
        fits = (available - bundle.weights.nbytes) // kv_bytes_per_token(bundle)
        advice = f"ask for at most {fits} kv_tokens" if fits >= bundle.page_size else "no context fits beside them"
        raise InsufficientMemory(
            f"weights of {bundle.weights.nbytes / 2**20:.0f} MiB and {num_pages * bundle.page_size} tokens of keys and "
            f"values of {kv / 2**20:.0f} MiB need more than the {available / 2**20:.0f} MiB that are free; {advice}"
        )


def _chunk(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], start: int, end: int, spec: BackendSpec) -> ForwardBatch:
    """One sequence in pages 0, 1, 2, ..., its rows *start* to *end*."""
    rows = np.arange(start, end, dtype=np.int32)
    pages = np.arange(-(-end // spec.page_size), dtype=np.int32)
    return ForwardBatch(
        tokens=tokens[start:end].astype(np.int32),
        positions=rows,
        slots=rows,
        row_start=np.array([0, end - start], dtype=np.int32),
        block_table=pages[None, :],
        kv_len=np.array([end], dtype=np.int32),
        logit_rows=np.arange(end - start, dtype=np.int32),
    )
