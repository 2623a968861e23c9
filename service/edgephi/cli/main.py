"""The ``edgephi`` command: the list of its commands, and how it ends."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from edgephi.cli.bench import bench
from edgephi.cli.calibrate import calibrate
from edgephi.cli.cert import cert
from edgephi.cli.chat import chat
from edgephi.cli.config import config
from edgephi.cli.demo import demo
from edgephi.cli.devices import devices
from edgephi.cli.doctor import doctor
from edgephi.cli.failures import EdgephiGroup
from edgephi.cli.health import health
from edgephi.cli.models import model
from edgephi.cli.plan import plan
from edgephi.cli.ps import ps
from edgephi.cli.run import run
from edgephi.cli.serve import serve
from edgephi.cli.token import token
from edgephi.cli.version import version


def print_version(ctx: click.Context, _: click.Parameter, value: Any) -> None:
    """Print the version and end, if asked to."""
    if value and not ctx.resilient_parsing:
        from edgephi.cli.version import package_version

        click.echo(f"edgephi {package_version()}")
        ctx.exit()


@click.group(
    cls=EdgephiGroup,
    context_settings={"auto_envvar_prefix": "EDGEPHI", "help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print the version."
)
def cli() -> None:
    """
    4-bit Phi-3-mini as a private language-model service on ARM boards and small x86 machines.

    \b
    First steps:
      edgephi run "turn on the kitchen light"     one answer, in this process
      edgephi serve                               a gRPC server on 127.0.0.1:50051
      edgephi run --connect 127.0.0.1:50051 "..." the same answer from the server
      edgephi plan                                what context and speed to expect here, or on another device

    Every option but --json can also be set by an environment variable: EDGEPHI_, the command, the option, such as
    EDGEPHI_SERVE_PORT=50052 for `edgephi serve --port`. `edgephi serve` also reads a file (`edgephi config --help`).

    Exit status: 0 done, 1 failed, 2 wrong command line, 130 interrupted with Ctrl-C.
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone


for command in (
    run,
    chat,
    serve,
    config,
    cert,
    token,
    ps,
    health,
    model,
    doctor,
    devices,
    plan,
    calibrate,
    bench,
    demo,
    version,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and end the process."""
    cli.main(prog_name="edgephi")
    sys.exit(0)


if __name__ == "__main__":
    main()
