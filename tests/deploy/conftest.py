"""The deployment files and what the command line knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgephi.cli.main import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def deploy() -> Path:
    """Return the folder of deployment files."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def variables() -> dict[str, click.Option]:
    """Return every environment variable that sets an option, with the option."""
    return dict(_variables(cli, "EDGEPHI"))


def _variables(command: click.Command, prefix: str) -> Iterator[tuple[str, click.Option]]:
    for option in command.params:
        if isinstance(option, click.Option) and option.allow_from_autoenv and option.name is not None:
            yield f"{prefix}_{option.name.upper()}", option
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _variables(child, f"{prefix}_{name.replace('-', '_').upper()}")
