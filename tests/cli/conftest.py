"""A model of random weights, the command line in this process and in processes of its own, and servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner, Result

from edgephi.artifact.synth import synthesize
from edgephi.cli.main import cli

TIMEOUT_S = 60
COMMAND = (sys.executable, "-m", "edgephi.cli.main")

Invoke = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[str]"]
Serve = Callable[..., contextlib.AbstractContextManager["RunningServer"]]


@dataclass
class RunningServer:
    """A server process, what it said when it was ready, and its log."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log_file: IO[str]

    @property
    def address(self) -> str:
        """Where clients find it."""
        return str(self.ready["address"])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def log(self) -> str:
        """Everything it has logged so far."""
        self.log_file.seek(0)
        return self.log_file.read()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's models."""
    monkeypatch.setenv("EDGEPHI_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of random weights; tests marked tvm compile it once."""
    return synthesize("phi3-tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def invoke() -> Invoke:
    """Return a function that runs a command line in this process."""

    def run(*arguments: str | Path, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, env=env)

    return run


@pytest.fixture
def fake(tiny: Path) -> tuple[str, ...]:
    """Options that choose the fake engine."""
    return ("--model", str(tiny), "--engine", "fake")


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Return a function that starts the command in a process of its own; it is killed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
            command = [*COMMAND, *map(str, arguments)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
            process = subprocess.Popen(command, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}, **pipes)
            stack.callback(_end, process)
            return process

        yield start


@pytest.fixture
def serve(spawn: Spawn, fake: tuple[str, ...]) -> Serve:
    """Return a context manager that runs ``edgephi serve`` on a free port, by default with the fake engine."""

    @contextlib.contextmanager
    def run(*arguments: str | Path, options: tuple[str | Path, ...] | None = None) -> Iterator[RunningServer]:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            chosen = fake if options is None else options
            process = spawn("serve", "--port", "0", "--json", *chosen, *arguments, stderr=log)
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            assert line, log.read()
            yield RunningServer(process, json.loads(line), log)

    return run


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
