"""Is a command line one of edgephi's? For what documents, the Makefile and the commands themselves tell to type."""

from __future__ import annotations

import shlex

import click

from edgephi.cli.main import cli


def assert_is_command(line: str, *, is_whole: bool = True) -> None:
    """
    Assert that a command takes the options and arguments of a line.

    Args:
        line: What follows ``edgephi``; comments and redirections count as nothing.
        is_whole: Whether it may be run as it is; otherwise only its options must exist.

    Raises:
        AssertionError: If there is no such command, or arguments are too many or too few.
        click.UsageError: If there is no such option, or its value is missing.
    """
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    if isinstance(command, click.Group):
        return
    if not is_whole:
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, (
            command.name,
            words,
        )
        return
    values, extra, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert not extra, (command.name, extra)
    required = [p.name for p in command.params if isinstance(p, click.Argument) and p.required]
    missing = [name for name in required if not values.get(str(name))]
    assert values.get("help") or not missing, (command.name, missing)
