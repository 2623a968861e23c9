"""edgephi through its engine: requests in, events out, as the server drives it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.protocol import Ids, Logits, serve

_started_at = time.perf_counter()
import edgephi.runtime.tvm_backend  # noqa: E402, F401 - TVM is otherwise imported while the model is loaded
from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch  # noqa: E402
from edgephi.engine.core import Engine, EngineConfig  # noqa: E402
from edgephi.engine.request import EngineRequest, Finished, RequestId, SamplingParams, TokenSampled  # noqa: E402
from edgephi.errors import EngineFailed  # noqa: E402
from edgephi.runtime.bundles import ensure_bundle  # noqa: E402
from edgephi.runtime.model import LoadedModel, RuntimeOptions, load_model  # noqa: E402

IMPORT_S = time.perf_counter() - _started_at

_KV_TOKENS = 4096
_MAX_SEQUENCES = 4
_PREFILL_CHUNK_TOKENS = 256  # as in ``edgephi bench``


class Edgephi:
    """One model with its engine. It is compiled in the constructor, before anything is timed."""

    def __init__(self, *, model: str, threads: int, kv_dtype: str) -> None:
        self._path = Path(model)
        self._options = RuntimeOptions(threads=threads, kv_dtype=kv_dtype, kv_tokens=_KV_TOKENS)
        ensure_bundle(self._path, self._options.bundle_options())
        self._model: LoadedModel | None = None

    def load(self) -> None:
        """Map the weights and load the library."""
        self._model = load_model(self._path, self._options)
        self._backend = _Backend(self._model)
        config = EngineConfig(
            max_running=_MAX_SEQUENCES,
            prefill_chunk_tokens=_PREFILL_CHUNK_TOKENS,
            # Random weights soon repeat themselves, and guessed tokens would be right without meaning anything.
            max_draft_tokens=0,
        )
        self._engine = Engine(self._backend, config)

    def open(self, batch: int, max_tokens: int, **_: Any) -> EdgephiSession:
        """Requests for *batch* sequences; pages are shared by all sessions."""
        return EdgephiSession(self._engine, self._backend, batch, max_tokens)


class _Backend:
    """The model's backend, which also remembers the last logits, to check that they are sound."""

    def __init__(self, model: LoadedModel) -> None:
        self._backend = model.backend
        self.last_logits: F32Array = np.empty((0, 0), np.float32)

    @property
    def spec(self) -> BackendSpec:
        return self._backend.spec

    def forward(self, batch: ForwardBatch) -> F32Array:
        logits = self._backend.forward(batch)
        if len(logits):
            self.last_logits = logits
        return logits

    def release_pages(self, pages: Sequence[int]) -> None:
        self._backend.release_pages(pages)

    def close(self) -> None:
        self._backend.close()


class EdgephiSession:
    """Requests that decode together. Only one session's requests are live: the others' would join every step."""

    def __init__(self, engine: Engine, backend: _Backend, batch: int, max_tokens: int) -> None:
        self._engine = engine
        self._backend = backend
        self._max_tokens = max_tokens
        self._names = [RequestId(str(index)) for index in range(batch)]
        self._prompt: Ids = np.empty((batch, 0), np.int32)

    def prefill(self, prompt: Ids) -> None:
        self._prompt = prompt
        for index in range(_MAX_SEQUENCES):
            self._engine.cancel(RequestId(str(index)))
        for name, ids in zip(self._names, prompt.tolist(), strict=True):
            self._engine.submit(
                EngineRequest(
                    request_id=name,
                    prompt=tuple(ids),
                    # More than is asked for: no request may end, and the first ones draw while others are prompts.
                    max_tokens=self._max_tokens - len(ids) + _MAX_SEQUENCES,
                    sampling=SamplingParams(temperature=0.0),
                )
            )
        waiting = set(self._names)
        while waiting:
            waiting -= self._step()

    def step(self) -> None:
        if len(self._step()) != len(self._names):
            raise EngineFailed("a step did not draw a token for each sequence")

    def rewind(self) -> None:
        self.prefill(self._prompt)  # the pages of the prompt are still there and shared: little is computed

    def logits(self) -> Logits:
        row: Logits = self._backend.last_logits[0]
        return row

    def close(self) -> None:
        for name in self._names:
            self._engine.cancel(name)

    def _step(self) -> set[RequestId]:
        """Step the engine; returns the requests that got a token."""
        events = self._engine.step()
        for event in events:
            if isinstance(event, Finished):
                raise EngineFailed(event.error or f"a request ended early with {event.reason.value}")
        return {event.request_id for event in events if isinstance(event, TokenSampled)}


if __name__ == "__main__":
    serve(Edgephi, package="edgephi", import_s=IMPORT_S)
