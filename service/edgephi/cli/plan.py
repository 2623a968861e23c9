"""``edgephi plan``: what a model can do on a device, before either is there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from edgephi.cli.devices import device_file_option
from edgephi.cli.failures import EXIT_FAILED
from edgephi.cli.options import AUTO, json_option
from edgephi.cli.output import print_json
from edgephi.cli.planned_model import PHI3_MINI
from edgephi.cli.planning import PlanningOptions, plan_for
from edgephi.cli.planning_basis import THIS_MACHINE
from edgephi.profile.plan import KvDtype
from edgephi.profile.planning.planner import Prefer

MAX_WIDTH = 100


class AutoOr(click.ParamType[Any]):
    """A value of another type, or ``auto`` for None."""

    def __init__(self, kind: click.ParamType[Any], name: str) -> None:
        self._kind = kind
        self.name = f"{name}|{AUTO}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return None for ``auto``, else what the other type makes of it."""
        return None if value == AUTO else self._kind.convert(value, param, ctx)


@click.command("plan", short_help="Say what a model can do on a device, this or another.")
@click.option(
    "-m", "--model", default=PHI3_MINI, show_default=True, help="Folder or name of a model, installed or not."
)
@click.option(
    "--device", default=THIS_MACHINE, show_default=True, metavar="NAME", help="A board of `edgephi devices`, or auto."
)
@device_file_option
@click.option("--memory", metavar="SIZE", help="Most memory the server may use, such as 4GiB.  [default: what is free]")
@click.option("--floor", type=float, default=12.0, show_default=True, help="Tokens a second that each request keeps.")
@click.option("--context", type=int, metavar="N", help="Tokens of context of each request.  [default: the most]")
@click.option("--batch", type=int, metavar="N", help="Requests at once.  [default: the most]")
@click.option(
    "--prefer",
    type=click.Choice([kind.value for kind in Prefer]),
    default=Prefer.CONTEXT.value,
    show_default=True,
    help="What to have most of, once the floor is kept and memory suffices.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice([AUTO, *(kind.value for kind in KvDtype)]),
    default=AUTO,
    show_default=True,
    help="Of cached keys and values.",
)
@click.option(
    "--quantization",
    type=AutoOr(click.STRING, "NAME"),
    default=AUTO,
    show_default=True,
    help="Of the weights, such as q3f16_g32; auto is what the model has, or q4f16_1 where it is not here.",
)
@click.option("--threads", type=AutoOr(click.INT, "N"), default=AUTO, show_default=True, help="Threads that compute.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also draw speed and memory against context into this .svg or .png file; needs Matplotlib.",
)
@click.option("--check", is_flag=True, help="Exit with 1 where the floor cannot be kept or memory does not suffice.")
@json_option
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    *,
    model: str,
    device: str,
    device_file: tuple[Path, ...],
    memory: str | None,
    floor: float,
    context: int | None,
    batch: int | None,
    prefer: str,
    kv_dtype: str,
    quantization: str | None,
    threads: int | None,
    plot: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """
    Choose context, requests at once, prompt chunk, element type and threads for a model on a device, so that memory
    suffices and each request keeps the floor; predict speed and memory, and say what would help.

    Neither the model nor the device need be there. For this machine the numbers are its own once `edgephi calibrate`
    has run; for others they are estimates, with their range. Also exits with 0 where the floor cannot be kept: the
    best that can be done is then printed (but see --check).

    \b
    Examples:
      edgephi plan
      edgephi plan --device raspberry-pi-5-8gb --floor 4
      edgephi plan --device jetson-orin-nano-super --batch 2 --plot orin.svg
      edgephi plan --model phi3-mini-4k --memory 3GiB --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.cli.curve import curve_of
    from edgephi.cli.plan_table import plan_lines
    from edgephi.cli.plot import check_plot_file, glyphs_for, write_plot
    from edgephi.profile.machine.memory_limits import parse_bytes

    if plot is not None:
        check_plot_file(plot)
    planned = plan_for(
        PlanningOptions(
            model=model,
            device=device,
            device_files=device_file,
            memory_bytes=None if memory is None else parse_bytes(memory),
            floor_tokens_per_s=floor,
            context_tokens=context,
            batch=batch,
            prefer=Prefer(prefer),
            kv_dtype=None if kv_dtype == AUTO else KvDtype(kv_dtype),
            quantization=quantization,
            threads=threads,
        )
    )
    curve = curve_of(planned)
    if plot is not None:
        write_plot(curve, plot)
        click.echo(f"plot written to {plot}", err=True)
    if as_json:
        basis = planned.basis
        points = [dataclasses.asdict(point) for point in curve.points]
        more = {"numbers_from": basis.source, "budget_reason": basis.budget_reason, "curve": points}
        print_json(planned.plan.as_json() | more)
    else:
        width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
        glyphs = glyphs_for(sys.stdout.encoding, os.environ)
        for line in plan_lines(planned, width=width, glyphs=glyphs):
            click.echo(line)
    if check and not planned.plan.feasible:
        ctx.exit(EXIT_FAILED)
