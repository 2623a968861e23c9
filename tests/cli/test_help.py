from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import Result

from edgephi.cli.main import cli

HEAVY = ("numpy", "tvm", "grpc", "google.protobuf", "tokenizers", "structlog", "prometheus_client")


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = tuple(_commands(cli))


def _command(path: tuple[str, ...]) -> click.Command:
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_how_to_use_every_command(path: tuple[str, ...], invoke: object) -> None:
    """Every command explains itself, gives an example and has a machine-readable form."""
    assert callable(invoke)
    result: Result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output
    if path != ("version",):
        assert f"edgephi {' '.join(path)}" in result.output.split("Example", 1)[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    """No option of a command is left without an explanation."""
    silent = [p.name for p in _command(path).params if isinstance(p, click.Option) and not p.help]
    assert silent == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_environment_variables_are_named_after_options(path: tuple[str, ...]) -> None:
    """What the help says of environment variables holds: every option but --json has one named after it."""
    for option in (param for param in _command(path).params if isinstance(param, click.Option)):
        flag = next(name for name in option.opts if name.startswith("--"))
        assert option.allow_from_autoenv is (flag != "--json")
        assert flag == "--json" or option.name == flag.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["model", "--help"]], ids=str)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    """Asking for help loads neither NumPy nor TVM nor gRPC."""
    program = (
        "import sys\nfrom edgephi.cli.main import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(loaded, file=sys.stderr)\nsys.exit(bool(loaded))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_main_help_names_exit_codes(invoke: object) -> None:
    """The first help page says what the exit status means and how options become environment variables."""
    assert callable(invoke)
    output = invoke("--help").output
    assert "130 interrupted" in output
    assert "EDGEPHI_SERVE_PORT" in output


def test_unknown_command_is_a_usage_error(invoke: object) -> None:
    """A command that does not exist ends with status 2."""
    assert callable(invoke)
    assert invoke("dance").exit_code == 2
