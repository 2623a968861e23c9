"""OpenVINO through an ``InferRequest`` on the stateful model: what openvino-genai itself runs, without its text."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tests.bench.protocol import Ids, Logits, serve

_started_at = time.perf_counter()
import openvino as ov  # noqa: E402 - its import is timed

IMPORT_S = time.perf_counter() - _started_at

_MAX_CHUNK = 512  # the mask of a longer chunk would only cost memory
_CHEAP_PROMPT_TOKENS = 64


class OpenVino:
    """
    One compiled model.

    ``precision`` is OpenVINO's INFERENCE_PRECISION_HINT, the type between operators. Weights stay int4, activations
    are quantized to int8 in groups of 32 and keys and values are uint8 with either: the plugin's defaults.
    """

    def __init__(self, *, model: str, threads: int, precision: str) -> None:
        self._path = f"{model}/openvino_model.xml"
        self._config = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model: Any = None

    def load(self) -> None:
        """Compile the graph; the plugin repacks the weights at the first inference."""
        self._model = ov.Core().compile_model(self._path, "CPU", self._config)

    def open(self, batch: int, max_tokens: int, **_: Any) -> OpenVinoSession:
        """Make a request, which holds the state; it grows as it must."""
        del max_tokens
        return OpenVinoSession(self._model.create_infer_request(), batch)


class OpenVinoSession:
    """An ``InferRequest`` with its state."""

    def __init__(self, request: Any, batch: int) -> None:
        self._request = request
        self._position = 0
        self._prompt: Ids = np.empty((batch, 0), np.int32)
        self._next: Ids = np.empty((batch, 1), np.int32)
        request.set_tensor("beam_idx", ov.Tensor(np.arange(batch, dtype=np.int32)))

    def prefill(self, prompt: Ids) -> None:
        self._request.reset_state()
        self._position = 0
        self._prompt = prompt
        for start in range(0, prompt.shape[1], _MAX_CHUNK):
            self._infer(prompt[:, start : start + _MAX_CHUNK])

    def step(self) -> None:
        self._infer(self._next)

    def rewind(self) -> None:
        # A state cannot be cut. After a long prompt the session goes on where it is: a few per cent more context.
        if self._prompt.shape[1] <= _CHEAP_PROMPT_TOKENS:
            self.prefill(self._prompt)

    def logits(self) -> Logits:
        row: Logits = self._request.get_tensor("logits").data[0, -1].copy()
        return row

    def close(self) -> None:
        self._request = None

    def _infer(self, ids: Ids) -> None:
        batch, tokens = ids.shape
        end = self._position + tokens
        positions = np.broadcast_to(np.arange(self._position, end), (batch, tokens))
        self._request.set_tensor("input_ids", ov.Tensor(ids.astype(np.int64)))
        self._request.set_tensor("attention_mask", ov.Tensor(np.ones((batch, end), np.int64)))
        self._request.set_tensor("position_ids", ov.Tensor(np.ascontiguousarray(positions, dtype=np.int64)))
        self._request.infer()
        self._position = end
        self._next = self._request.get_tensor("logits").data[:, -1].argmax(-1)[:, None]


if __name__ == "__main__":
    serve(OpenVino, package="openvino", import_s=IMPORT_S)
