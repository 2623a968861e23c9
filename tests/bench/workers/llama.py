"""llama.cpp through llama-cpp-python's low-level API: ``llama_decode`` and an argmax, nothing between."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import numpy as np
from tests.bench.protocol import Ids, Logits, serve

_started_at = time.perf_counter()
import llama_cpp as llama  # noqa: E402 - its import is timed

IMPORT_S = time.perf_counter() - _started_at

_GGML_TYPES = {"f16": 1, "q8_0": 8}
_MAX_CHUNK = 512  # llama.cpp's own default for a physical batch
_ERROR = 4  # of enum ggml_log_level


def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level >= _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class Llama:
    """One model; its weights are shared by sessions of any settings."""

    def __init__(self, *, model: str, threads: int) -> None:
        self._path = model
        self._threads = threads
        self._model: Any = None

    def load(self) -> None:
        """Map the file; llama.cpp repacks the weights for this CPU into memory of its own."""
        self._log = llama.llama_log_callback(_log)  # kept: llama.cpp does not keep it alive
        llama.llama_log_set(self._log, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(self._path.encode(), llama.llama_model_default_params())
        if not self._model:
            raise OSError(f"llama.cpp cannot load {self._path}")

    def open(self, batch: int, max_tokens: int, **settings: Any) -> LlamaSession:
        """Make a context; *settings* are ``flash_attention`` (bool) and ``kv`` (``f16`` or ``q8_0``)."""
        return LlamaSession(self._model, self._threads, batch, max_tokens, **settings)


class LlamaSession:
    """A ``llama_context``."""

    def __init__(
        self, model: Any, threads: int, batch: int, max_tokens: int, *, flash_attention: bool, kv: str
    ) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = batch * max_tokens
        params.n_seq_max = batch
        params.kv_unified = False  # sequences that share no prefix are faster with caches of their own
        params.n_batch = params.n_ubatch = _MAX_CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = _GGML_TYPES[kv]
        params.no_perf = True
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError("llama.cpp cannot make a context")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(_MAX_CHUNK, 0, 1)
        self._num_sequences = batch
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._prompt_len = self._position = 0
        self._first: list[int] = []
        self._next: list[int] = []

    def prefill(self, prompt: Ids) -> None:
        llama.llama_memory_clear(self._memory, False)
        self._next = []
        for sequence, ids in enumerate(prompt.tolist()):
            for start in range(0, len(ids), _MAX_CHUNK):
                chunk = ids[start : start + _MAX_CHUNK]
                is_last = start + len(chunk) == len(ids)
                rows = [(token, start + i, sequence, False) for i, token in enumerate(chunk)]
                rows[-1] = (*rows[-1][:3], is_last)
                self._decode(rows)
            self._next.append(self._argmax(-1))
        self._first = self._next
        self._prompt_len = self._position = prompt.shape[1]

    def step(self) -> None:
        self._decode([(token, self._position, sequence, True) for sequence, token in enumerate(self._next)])
        self._next = [self._argmax(sequence) for sequence in range(self._num_sequences)]
        self._position += 1

    def rewind(self) -> None:
        for sequence in range(self._num_sequences):
            llama.llama_memory_seq_rm(self._memory, sequence, self._prompt_len, -1)
        self._position = self._prompt_len
        self._next = self._first

    def logits(self) -> Logits:
        return self._row(-self._num_sequences if self._position > self._prompt_len else -1).copy()

    def close(self) -> None:
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        batch.n_tokens = len(rows)
        status = llama.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _argmax(self, row: int) -> int:
        return int(self._row(row).argmax())

    def _row(self, row: int) -> Logits:
        pointer = llama.llama_get_logits_ith(self._context, row)
        array: Logits = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
        return array


if __name__ == "__main__":
    serve(Llama, package="llama-cpp-python", import_s=IMPORT_S)
