"""``edgephi health``: is a server taking requests?"""

from __future__ import annotations

import click

from edgephi.cli.failures import EXIT_FAILED
from edgephi.cli.options import Address, connect_options, json_option
from edgephi.cli.output import print_json
from edgephi.errors import EdgephiError


@click.command("health", short_help="Ask a server whether it takes requests.")
@click.option("--service", default="", metavar="NAME", help="liveness, readiness or a service.  [default: readiness]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the reply.",
)
@json_option
@connect_options(is_required=True)
@click.pass_context
def health(ctx: click.Context, /, *, service: str, timeout: float, as_json: bool, address: Address) -> None:
    """
    Ask a server by the standard gRPC health protocol; exits with 0 when it serves and 1 when not.

    \b
    Examples:
      edgephi health
      edgephi health --connect 192.168.1.20:50051 --service liveness
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    reason: str | None = None
    try:
        with address.connect(timeout_s=timeout) as client:
            is_serving = client.health(service)
    except EdgephiError as error:
        is_serving, reason = False, str(error)
    if as_json:
        print_json({"address": address.target, "is_serving": is_serving, "reason": reason})
    else:
        click.echo("serving" if is_serving else f"not serving{'' if reason is None else f': {reason}'}")
    if not is_serving:
        ctx.exit(EXIT_FAILED)
