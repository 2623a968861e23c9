"""``edgephi version``: this package and the libraries whose version matters in a report."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from edgephi.cli.options import json_option
from edgephi.cli.output import print_json

LIBRARIES = ("apache-tvm", "grpcio", "protobuf", "numpy", "tokenizers")


def package_version() -> str:
    """Return edgephi's version."""
    return importlib.metadata.version("edgephi")


def library_versions() -> dict[str, str | None]:
    """Return the version of each library; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@click.command("version", short_help="Print versions.")
@json_option
def version(*, as_json: bool) -> None:
    """Print the versions of edgephi, Python and the libraries that matter in a bug report."""
    values = {"edgephi": package_version(), "python": platform.python_version(), **library_versions()}
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        click.echo(f"{name} {value or 'not installed'}")
