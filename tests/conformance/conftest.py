"""One client program of each stack for all tests, and the server of tests/server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.stacks import Stack, absence, standard_descriptors
from tests.server.conftest import device, model_dir, pki, serve, serve_in_thread, tokenizer, tokenizer_json

__all__ = ["device", "model_dir", "pki", "serve", "serve_in_thread", "tokenizer", "tokenizer_json"]

# The cases assert in modules that are no tests; this makes pytest tell what was seen there as well.
pytest.register_assert_rewrite(*(f"tests.conformance.{name}_cases" for name in ("call", "stream", "service")))


@pytest.fixture(scope="session")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the descriptors of health and reflection."""
    path = tmp_path_factory.mktemp("conformance") / "standard.binpb"
    path.write_bytes(standard_descriptors())
    return path


@pytest.fixture(scope="session")
def started() -> Iterator[dict[str, Stack]]:
    """The programs that run, by name; all end with the tests."""
    stacks: dict[str, Stack] = {}
    yield stacks
    for stack in stacks.values():
        stack.close()


@pytest.fixture
def stack(request: pytest.FixtureRequest, started: dict[str, Stack], descriptors: Path) -> Stack:
    """The program of the stack that is named by the test's parameter; skips where it cannot run."""
    name: str = request.param
    reason = absence(name)
    if reason is not None:
        pytest.skip(reason)
    if name in started and not started[name].is_alive:
        started.pop(name).close()
    if name not in started:
        started[name] = Stack(name, descriptors)
    return started[name]
