"""ONNX Runtime GenAI through its generator, ``append_tokens`` and ``generate_next_token``."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from tests.bench.protocol import Ids, Logits, serve

_started_at = time.perf_counter()
import onnxruntime_genai as genai  # noqa: E402 - its import is timed

IMPORT_S = time.perf_counter() - _started_at

# More at once would only cost memory for the scores of attention; its own ``chunk_size`` does the same.
_MAX_CHUNK = 512


class OnnxRuntime:
    """One model; the type of its keys and values is fixed in its graph."""

    def __init__(self, *, model: str, threads: int) -> None:
        self._folder = model
        self._threads = threads
        self._model: genai.Model = None

    def load(self) -> None:
        """Make the session; ONNX Runtime repacks the weights into memory of its own."""
        config = genai.Config(self._folder)
        session = {"intra_op_num_threads": self._threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = genai.Model(config)

    def open(self, batch: int, max_tokens: int, **_: Any) -> OnnxSession:
        """Make room; the generator itself is made for each prompt."""
        return OnnxSession(self._model, batch, max_tokens)


class OnnxSession:
    """One ``Generator`` after another."""

    def __init__(self, model: genai.Model, batch: int, max_tokens: int) -> None:
        self._model = model
        self._params = genai.GeneratorParams(model)
        # As long as min_length is not reached, no end-of-sequence token is drawn.
        self._params.set_search_options(
            batch_size=batch, max_length=max_tokens, min_length=max_tokens, do_sample=False, top_k=1
        )
        self._generator: genai.Generator = None
        self._prompt: Ids = np.empty((batch, 0), np.int32)

    def prefill(self, prompt: Ids) -> None:
        self._prompt = prompt
        self._generator = None  # frees its keys and values before the next ones are allocated
        self._generator = genai.Generator(self._model, self._params)
        for start in range(0, prompt.shape[1], _MAX_CHUNK):
            self._generator.append_tokens(prompt[:, start : start + _MAX_CHUNK])
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()

    def rewind(self) -> None:
        prompt_len = self._prompt.shape[1]
        if len(self._prompt) == 1:
            # Also computes the first token again, so that the next step only draws: it is the one that is not timed.
            first = self._generator.get_sequence(0)[prompt_len : prompt_len + 1]
            self._generator.rewind_to(prompt_len)
            self._generator.append_tokens(np.array([first], np.int32))
        else:  # several sequences cannot be rewound
            self.prefill(self._prompt)

    def logits(self) -> Logits:
        # The logits lie where min_length has already written its lowest number over the end-of-sequence token.
        row: Logits = np.asarray(self._generator.get_output("logits"), dtype=np.float32)[0, -1]
        return row[row > np.finfo(np.float32).min]

    def close(self) -> None:
        self._generator = None


if __name__ == "__main__":
    serve(OnnxRuntime, package="onnxruntime-genai", import_s=IMPORT_S)
