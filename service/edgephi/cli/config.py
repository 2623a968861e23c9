"""``edgephi config``: the configuration of ``edgephi serve``, checked and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgephi.cli.config_file import (
    CONFIG_ENV,
    ConfigFile,
    Setting,
    default_files,
    environment_problems,
    read_config,
    resolved,
)
from edgephi.cli.options import json_option
from edgephi.cli.output import print_json
from edgephi.cli.serve import serve
from edgephi.errors import ConfigError

EXIT_WRONG = 2


@click.group("config", short_help="Check and show the configuration of `edgephi serve`.")
def config() -> None:
    """
    The configuration of `edgephi serve`: a flag outranks an environment variable, which outranks the file.

    The file is the one that --config or EDGEPHI_CONFIG names, otherwise edgephi.yaml in the user's configuration
    folder, otherwise /etc/edgephi/edgephi.yaml. Its fields are the options of `edgephi serve`, such as max_running: 2.
    """


@config.command("check", short_help="Look for mistakes in the file and the environment.")
@json_option
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, dir_okay=False), envvar=CONFIG_ENV, metavar="[FILE]"
)
@click.pass_context
def check(ctx: click.Context, /, *, file: Path | None, as_json: bool) -> None:
    """
    List every mistake in FILE, or in the file that `edgephi serve` would read, and in the EDGEPHI_SERVE_ variables.

    Exit status: 0 without a mistake, 2 with one. Nothing is loaded.

    \b
    Examples:
      edgephi config check
      edgephi config check deploy/edgephi.yaml
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    found = ConfigFile()
    try:
        found = read_config(file, serve)
        problems = [*found.problems, *environment_problems(serve)]
        if not problems:  # only sound values can be judged together
            arguments = [] if found.path is None else ["--config", str(found.path)]
            _check_together(serve.make_context("serve", arguments, parent=ctx.find_root()).params)
    except ConfigError as error:
        problems = [str(error)]
    except click.UsageError as error:
        problems = [error.format_message()]
    if as_json:
        print_json({"file": None if found.path is None else str(found.path), "problems": problems})
    else:
        _tell(found, problems)
    if problems:
        ctx.exit(EXIT_WRONG)


@config.command(
    "show",
    short_help="Show each option's value and where it comes from.",
    context_settings={"ignore_unknown_options": True},
)
@json_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF SERVE]...")
@click.pass_context
def show(ctx: click.Context, /, *, as_json: bool, options: tuple[str, ...]) -> None:
    """
    Show what `edgephi serve` would run with, given the same options.

    \b
    Examples:
      edgephi config show
      edgephi config show --config deploy/edgephi.yaml --port 50052
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    context = serve.make_context("serve", list(options), parent=ctx.find_root())
    settings = resolved(context)
    if as_json:
        print_json({name: dataclasses.asdict(setting) for name, setting in settings.items()})
        return
    rows = [(name, _shown(setting.value), _source(setting)) for name, setting in settings.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")


def _tell(found: ConfigFile, problems: list[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        return
    if found.path is None:
        click.echo(f"no configuration file; looked for {' and '.join(map(str, default_files()))}")
    else:
        number = len(found.values)
        click.echo(f"{found.path}: {number} {'setting' if number == 1 else 'settings'}, no mistake")


def _check_together(values: Mapping[str, Any]) -> None:
    """Raise ConfigError where sound values do not go together."""
    from edgephi.server.settings import ServerSettings

    names = {field.name for field in dataclasses.fields(ServerSettings)}
    ServerSettings(**{name: value for name, value in values.items() if name in names})


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source(setting: Setting) -> str:
    return setting.source if setting.where is None else setting.where
