"""
The configuration of ``edgephi serve`` beside its flags: a YAML file, and environment variables.

Owns where the file is looked for and how both are checked. The command's options are the only list of what can be set:
a field of the file has an option's name, a variable that name in capitals after ``EDGEPHI_SERVE_``. A flag outranks a
variable, which outranks the file. No option takes a secret, only paths of files that hold one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from edgephi.errors import ConfigError
from edgephi.profile.boards.yamlfields import read_fields

SYSTEM_FILE = Path("/etc/edgephi/edgephi.yaml")
SERVE_PREFIX = "EDGEPHI_SERVE_"
CONFIG_ENV = ("EDGEPHI_CONFIG", f"{SERVE_PREFIX}CONFIG")
_META = "edgephi.config_file"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """
    What a configuration file sets.

    Attributes:
        path: The file; None where there is none.
        values: Each option's value as the file has it, by the option's name.
        lines: The line of each, counted from 1.
        problems: What is wrong in the file, one line each; such options are not among the values.
    """

    path: Path | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def default_files() -> tuple[Path, ...]:
    """Return where a file is looked for when none is named, the one that counts first."""
    import platformdirs

    return Path(platformdirs.user_config_dir("edgephi")) / "edgephi.yaml", SYSTEM_FILE


def settable(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that the environment and, but for --config, the file can set, by name."""
    return {
        option.name: option
        for option in command.params
        if isinstance(option, click.Option) and option.allow_from_autoenv and option.name is not None
    }


def read_config(path: Path | None, command: click.Command) -> ConfigFile:
    """
    Read the file that was named, or the first of the default ones that exists.

    Returns:
        What it sets, with every problem in it. An empty file sets nothing.

    Raises:
        ConfigError: If a file that was named cannot be read, or one is not YAML with fields.
    """
    if path is None:
        path = next((file for file in default_files() if file.exists()), None)
        if path is None:
            return ConfigFile()
    fields = read_fields(path, can_be_empty=True)
    options = _in_file(command)
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for name in fields.names:
        line = fields.line(name)
        option = options.get(name)
        if option is None:
            problems.append(f"{path}:{line}: unknown setting {name[:40]!r}; {_suggestion(name, options)}")
            continue
        try:
            text = fields.scalar(name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        problem = _problem(option, text, command)
        if problem is not None:
            problems.append(f"{path}:{line}: {name}: {problem}")
            continue
        values[name], lines[name] = text, line
    return ConfigFile(path, values, lines, tuple(problems))


def environment_problems(command: click.Command) -> list[str]:
    """Return what is wrong with the command's environment variables, one line each; no value of an unknown one."""
    options = settable(command)
    problems: list[str] = []
    for variable in sorted(os.environ):
        if not variable.startswith(SERVE_PREFIX):
            continue
        name = variable.removeprefix(SERVE_PREFIX).lower()
        if name not in options:
            problems.append(f"unknown environment variable {variable}; {_suggestion(name, options, SERVE_PREFIX)}")
        elif os.environ[variable]:  # an empty one counts as not set
            problem = _problem(options[name], os.environ[variable], command)
            if problem is not None:
                problems.append(f"environment variable {variable}: {problem}")
    return problems


def use_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """
    Take the defaults of a command's options from its file; the callback of an eager option.

    Raises:
        ConfigError: If the file or the environment is wrong.
    """
    if context.resilient_parsing:
        return
    file = read_config(path, context.command)
    refuse([*file.problems, *environment_problems(context.command)])
    context.default_map = dict(file.values)
    context.meta[_META] = file


def refuse(problems: list[str]) -> None:
    """Raise ConfigError of the first problem, if there is one."""
    if problems:
        more = f" (and {len(problems) - 1} more; `edgephi config check` lists them)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}")


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One option as it was resolved.

    Attributes:
        value: A number, a text, true or false; None for what is chosen later.
        source: ``default``, ``file``, ``environment`` or ``flag``.
        where: ``file:line`` or the variable's name; None for the other sources.
    """

    value: int | float | str | bool | None
    source: str
    where: str | None = None


def resolved(context: click.Context) -> dict[str, Setting]:
    """Return every settable option of a command whose line was parsed, with where its value came from."""
    file: ConfigFile = context.meta.get(_META, ConfigFile())
    sources = click.core.ParameterSource
    found: dict[str, Setting] = {}
    for name in _in_file(context.command):
        value = context.params[name]
        if value is not None and not isinstance(value, int | float | str):
            value = str(value)
        match context.get_parameter_source(name):
            case sources.COMMANDLINE:
                found[name] = Setting(value, "flag")
            case sources.ENVIRONMENT:
                found[name] = Setting(value, "environment", _variable(settable(context.command)[name]))
            case sources.DEFAULT_MAP:
                found[name] = Setting(value, "file", f"{file.path}:{file.lines[name]}")
            case _:
                found[name] = Setting(value, "default")
    return found


def _variable(option: click.Option) -> str:
    """Return the variable that an option was taken from: its own, or the first set one of those it names."""
    names = (option.envvar,) if isinstance(option.envvar, str) else tuple(option.envvar or ())
    return next((name for name in names if os.environ.get(name)), f"{SERVE_PREFIX}{str(option.name).upper()}")


def _in_file(command: click.Command) -> dict[str, click.Option]:
    return {name: option for name, option in settable(command).items() if name != "config"}


def _problem(option: click.Option, text: str, command: click.Command) -> str | None:
    """Return why an option does not take a text, None if it does."""
    try:
        option.type_cast_value(click.Context(command), text)
    except click.BadParameter as error:
        return error.message.rstrip(".")
    return None


def _suggestion(name: str, options: Mapping[str, click.Option], prefix: str = "") -> str:
    """Return which option was probably meant: by its name, or another spelling of its flag."""
    spellings = {name: name for name in options} | {
        flag.lstrip("-").replace("-", "_"): name for name, option in options.items() for flag in option.opts
    }
    close = difflib.get_close_matches(name.lower().replace("-", "_"), _long(spellings), n=1)
    if not close:
        return "`edgephi serve --help` lists the options"
    meant = spellings[close[0]]
    return f"did you mean {prefix + meant.upper() if prefix else meant}?"


def _long(spellings: Iterable[str]) -> list[str]:
    return [spelling for spelling in spellings if len(spelling) > 1]
