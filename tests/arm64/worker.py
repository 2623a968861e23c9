"""
What runs in the arm64 root: one process that calls kernels and models for the tests outside.

Reads pickled ``(function, arguments)`` from standard input and answers ``(True, result)`` or ``(False, error)`` on
standard output. TVM is loaded as the server loads it, without its compiler.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.errors import EdgephiError
from edgephi.profile.machine.isa import best_level, host_arch, host_features
from edgephi.runtime import LoadedModel, RuntimeOptions, load_model
from edgephi.runtime.bundles import current_bundle
from edgephi.runtime.tvm_runtime import tvm, tvm_ffi

Array = npt.NDArray[Any]


def level() -> str:
    """Return the level that edgephi would choose for this CPU."""
    return best_level(host_features(), host_arch()).name


def call(library: str, kernel: str, arguments: list[Array | int]) -> list[Array | int]:
    """Call a kernel and return its arguments as it left them."""
    given = [x if isinstance(x, int) else tvm.runtime.tensor(x) for x in arguments]
    _library(library)[kernel](*given)
    return [x if isinstance(x, int) else x.numpy() for x in given]


def logits(folder: str, options: RuntimeOptions, token_ids: list[int]) -> F32Array:
    """Return a model's logits of a sequence."""
    return _model(folder, options).logits(token_ids)


def forward(folder: str, options: RuntimeOptions, batch: ForwardBatch) -> F32Array:
    """Return a model's logits of a batch; its pages keep what earlier batches left."""
    return _model(folder, options).backend.forward(batch)


def refusal(folder: str, level: str) -> str:
    """Return the error that loading a model at a level this CPU does not have ends with."""
    try:
        _model(folder, RuntimeOptions(level=level))
    except EdgephiError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{folder} was loaded for {level}")


@functools.cache
def _library(path: str) -> Any:
    return tvm_ffi.load_module(path)


@functools.cache
def _model(folder: str, options: RuntimeOptions) -> LoadedModel:
    if current_bundle(Path(folder), options.bundle_options()) is None:
        # It would be compiled here otherwise, under emulation.
        raise EdgephiError(
            f"no up-to-date bundle in {folder}: the sources changed since the wheel in the root was built"
        )
    return load_model(folder, options)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {function.__name__: function for function in (level, call, logits, forward, refusal)}
)


def main() -> None:
    """Answer until standard input ends."""
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what anything prints is no answer
        while True:
            try:
                name, arguments = pickle.load(requests)
            except EOFError:
                return
            try:
                answer = True, _FUNCTIONS[name](*arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test outside fails with it
                answer = False, f"{type(error).__name__}: {error}"
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    main()
