"""Emulated CPUs by level, and what the imported tests need to compile here and run there."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.arm64 import root
from tests.arm64.machine import Library, Model, Process
from tests.compiler.conftest import build as build_for_host
from tests.compiler.conftest import run
from tests.runtime.conftest import golden, make_batch
from tvm.tirx import PrimFunc

from edgephi.artifact.convert import convert_checkpoint
from edgephi.compiler.link import link_library
from edgephi.profile.machine.isa import host_arch
from edgephi.runtime import RuntimeOptions
from edgephi.runtime.bundles import ensure_bundle

__all__ = ["build_for_host", "golden", "make_batch", "run"]

Start = Callable[[str], Process]
Build = Callable[[str, Mapping[str, PrimFunc]], Any]
Load = Callable[..., Model]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test of this folder; of those imported from other folders keep the ones that run on a level."""
    foreign = []
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker("arm64")
        assert isinstance(item, pytest.Function)
        if item.function.__module__ != item.module.__name__ and "level" not in item.fixturenames:
            foreign.append(item)
    items[:] = [item for item in items if item not in foreign]
    config.hook.pytest_deselected(items=foreign)


@pytest.fixture(scope="module", params=list(root.CPUS))
def level(request: pytest.FixtureRequest) -> str:
    """Each ARM level."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Return the process on an emulated CPU that has a level, started when it is first asked for."""
    assert root.ROOT.is_dir(), "there is no arm64 system; `make test-arm64` makes it"
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda level: stack.enter_context(Process(root.CPUS[level])))


@pytest.fixture(scope="session")
def build(build_for_host: Build, start: Start) -> Build:
    """Compile kernels for a level, by name; the result holds them as functions that run in the root."""
    numbers = itertools.count()

    def compile_and_link(level: str, kernels: Mapping[str, PrimFunc]) -> Library:
        process = start(level)
        path = process.folder / f"kernels-{next(numbers)}.so"
        link_library(build_for_host(level, kernels), path, arch="aarch64", host_arch=host_arch())
        return Library(process, path)

    return compile_and_link


@pytest.fixture(scope="module")
def load(level: str, start: Start, golden: Path) -> Load:
    """Compile the golden model for the level and load it there; options are those of RuntimeOptions."""
    process = start(level)

    def load_once(name: str, **options: str) -> Model:
        folder = process.folder / name
        if not folder.exists():
            convert_checkpoint(golden / "mlc-phi3-tiny" / "hf", folder, quantization=name)
        wanted = RuntimeOptions(level=level, **options)  # type: ignore[arg-type] # a test's own keywords
        ensure_bundle(folder, wanted.bundle_options())
        return Model(process, folder, wanted)

    return load_once
