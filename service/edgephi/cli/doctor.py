"""``edgephi doctor``: is this machine ready?"""

from __future__ import annotations

import click

from edgephi.cli.checks import Check, Status, run_checks
from edgephi.cli.failures import EXIT_FAILED
from edgephi.cli.options import json_option
from edgephi.cli.output import print_json

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


@click.command("doctor", short_help="Check whether this machine is ready.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool) -> None:
    """
    Check the CPU, memory, heat, power, disk, compiler, runtime and the packaged model; say what to do about each.

    Exits with 1 when a check fails; warnings alone exit with 0.

    \b
    Examples:
      edgephi doctor
      edgephi doctor --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    checks: list[Check] = []
    for check in run_checks():
        checks.append(check)
        if not as_json:
            click.echo(
                f"{click.style(check.status.value.ljust(4), fg=_COLORS[check.status])}  {check.name:<7} {check.found}"
            )
            if check.remedy is not None:
                click.echo(f"              {check.remedy}")
    has_failed = any(check.status is Status.FAIL for check in checks)
    if as_json:
        print_json({"is_ready": not has_failed, "checks": [check.as_json() for check in checks]})
    if has_failed:
        ctx.exit(EXIT_FAILED)
