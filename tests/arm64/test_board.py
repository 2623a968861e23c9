"""The package on an emulated board: what was compiled here serves there, and what the CPU cannot run is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from tests.arm64 import root
from tests.arm64.machine import Process, ProcessDied, inside

from edgephi.artifact.bundle import BUNDLE_JSON
from edgephi.pocket import model_dir
from edgephi.runtime import RuntimeOptions

Edgephi = Callable[..., "subprocess.CompletedProcess[str]"]

TIMEOUT_S = 300
DOTPROD = "armv8.2-dotprod"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The home folder of the board's user, as seen outside."""
    folder = Path(mkdtemp(prefix="home-", dir=root.SHARED))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def compile_here(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run ``edgephi model compile`` on this machine and return what it printed."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "edgephi.cli.main", "model", "compile", *map(str, arguments)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def on_board(home: Path) -> Edgephi:
    """Run the ``edgephi`` command in the root, on the CPU that is named first."""

    def run(cpu: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**root.environment(cpu), "HOME": inside(home)}
        command = root.command(root.PYTHON, "-m", "edgephi.cli.main", *arguments)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)

    return run


def test_the_pocket_model_answers_over_grpc(
    level: str, compile_here: Callable[..., str], home: Path, on_board: Edgephi
) -> None:
    """
    The packaged model, compiled here and copied where the command said, answers a client there over gRPC.

    The server is a process of its own; it chooses the level by what the CPU has and compiles nothing.
    """
    said = compile_here("pocket", "--target", level)
    copied, there = said.partition("copy ")[2].partition(",")[0].split(" into ~/")
    shutil.copytree(copied, home / there / Path(copied).name, dirs_exist_ok=True)
    done = on_board(root.CPUS[level], "demo", "--json", "--prompt", "turn on the hall light")
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout)
    assert story["server"]["level"] == level
    assert story["server_exit_status"] == 0
    command = json.loads(story["answers"][0]["text"])
    assert (command["intent"], command["target"]) == ("light_on", "hall")


@pytest.fixture(scope="module")
def folder(compile_here: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A model folder compiled here for dot products and copied to the board as the command said, as seen outside."""
    made = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(model_dir(), made)
    said = compile_here(made, "--target", DOTPROD)
    assert f"copy {made} without params_shard_*.bin, " in said
    copied = home / "small"
    shutil.copytree(made, copied, ignore=shutil.ignore_patterns("params_shard_*.bin"))
    return copied


def test_a_folder_serves_without_its_shards(folder: Path, on_board: Edgephi) -> None:
    """The board needs the packed weights only, so what is copied is not twice the model's size."""
    done = on_board("cortex-a76", "run", "--model", inside(folder), "turn on the hall light")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["intent"] == "light_on"


def test_a_cpu_without_the_instructions_refuses_the_model(folder: Path, on_board: Edgephi) -> None:
    """A Cortex-A72 asked for a bundle with dot products says what it can run instead, in one line."""
    done = on_board("cortex-a72", "run", "--model", inside(folder), "--target", DOTPROD, "hello")
    assert done.returncode == 1
    assert done.stderr == "error: target is 'armv8.2-dotprod'; this CPU runs armv8.0\n"


def test_a_library_is_refused_before_it_is_loaded(folder: Path, start: Callable[[str], Process]) -> None:
    """Loading such a bundle raises what the CPU lacks, and the process lives on."""
    process = start("armv8.0")
    refused = process.ask("refusal", inside(folder), DOTPROD)
    assert refused.startswith("CpuUnsupported: ")
    assert "is for armv8.2-dotprod, which needs asimddp, asimdhp, asimdrdm, atomics, fphp; this CPU lacks it" in refused
    assert process.ask("level") == "armv8.0"


def test_without_the_check_such_a_library_ends_the_process(folder: Path, home: Path) -> None:
    """A bundle that claims to need nothing is an illegal instruction: emulation sees the difference between CPUs."""
    claiming = shutil.copytree(folder, home / "claiming")
    description = claiming / "build" / DOTPROD / BUNDLE_JSON
    bundle = json.loads(description.read_text())
    description.write_text(json.dumps({**bundle, "required_features": []}))
    with Process("cortex-a72") as process, pytest.raises(ProcessDied) as died:
        process.ask("logits", inside(claiming), RuntimeOptions(level=DOTPROD), [1, 2, 3])
    assert died.value.status == 128 + signal.SIGILL
