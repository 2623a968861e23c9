"""The side of the tests that is outside: a process in the arm64 root, and kernels and models that it runs."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tests.arm64 import root

from edgephi.engine.backend import F32Array, ForwardBatch
from edgephi.runtime import RuntimeOptions


class ProcessDied(Exception):
    """The process in the root ended; *status* is that of the shell, 128 and the number of a signal."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(f"status {status}: {log}")
        self.status = status


class Process:
    """
    ``worker.py`` on an emulated CPU; a context manager, and without its ``with`` block nothing is started.

    Attributes:
        folder: A folder that both sides see, by its path outside.
    """

    def __init__(self, cpu: str) -> None:
        self._cpu = cpu

    def __enter__(self) -> Process:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="worker-", dir=root.SHARED))
            self.folder = Path(folder)
            shutil.copy(Path(__file__).with_name("worker.py"), folder)
            self._log = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            self._process = subprocess.Popen(
                root.command(root.PYTHON, inside(self.folder / "worker.py")),
                env=root.environment(self._cpu), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            )  # fmt: skip
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(self, function: str, *arguments: object) -> Any:
        """
        Return what a function of ``worker.py`` returns there.

        Raises:
            ProcessDied: If the process ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            is_done, result = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            self._log.seek(0)
            raise ProcessDied(status if status >= 0 else 128 - status, self._log.read()[-2000:]) from None
        assert is_done, result
        return result


@dataclass(frozen=True)
class Kernel:
    """A kernel of a library in the root."""

    process: Process
    library: str
    name: str

    def __call__(self, *arguments: Any) -> None:
        """Run it on TVM tensors of this machine and numbers; every tensor receives what it left in it."""
        sent = [x if isinstance(x, int) else x.numpy() for x in arguments]
        for x, left in zip(arguments, self.process.ask("call", self.library, self.name, sent), strict=True):
            if not isinstance(x, int):
                x.copyfrom(left)


@dataclass(frozen=True)
class Library:
    """A library of kernels in the root."""

    process: Process
    path: Path

    def __getitem__(self, name: str) -> Kernel:
        return Kernel(self.process, inside(self.path), name)


@dataclass(frozen=True)
class Model:
    """A compiled model in the root; what the tests use of ``LoadedModel``, and of its backend."""

    process: Process
    folder: Path
    options: RuntimeOptions

    @property
    def backend(self) -> Model:
        """What runs batches: the same object."""
        return self

    def logits(self, token_ids: list[int]) -> F32Array:
        """Return the logits of a sequence, (tokens, vocabulary) float32."""
        return np.asarray(self.process.ask("logits", inside(self.folder), self.options, token_ids), np.float32)

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Return the logits of a batch, (logit rows, vocabulary) float32."""
        return np.asarray(self.process.ask("forward", inside(self.folder), self.options, batch), np.float32)


def inside(path: Path) -> str:
    """Return where a file of the root is, as seen inside."""
    return f"/{path.relative_to(root.ROOT)}"
