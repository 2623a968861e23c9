"""``edgephi ps``: what a server is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.options import Address, connect_options, json_option
from edgephi.cli.output import format_bytes, print_json, print_table
from edgephi.errors import EdgephiError

if TYPE_CHECKING:
    from edgephi.client import Client

TIMEOUT_S = 5.0


@click.command("ps", short_help="Show what a server is doing.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Time over which tokens per second are counted.",
)
@json_option
@connect_options(is_required=True)
def ps(*, interval: float, as_json: bool, address: Address) -> None:
    """
    Show a server's model, its state, its load and its temperature.

    KV is the tokens held of the tokens that fit, for all requests together.

    \b
    Examples:
      edgephi ps
      edgephi ps --connect 192.168.1.20:50051 --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    with address.connect(timeout_s=TIMEOUT_S) as client:
        rows = _rows(client, interval)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("MODEL", "STATE", "SIZE", "KV", "RUNNING", "WAITING", "TOK/S", "MEMORY", "TEMP"),
        [
            (
                row["model"],
                row["state"],
                format_bytes(row["size_bytes"]),
                f"{row['kv_tokens_used']}/{row['kv_tokens']}",
                str(row["running"]),
                str(row["waiting"]),
                f"{row['output_tokens_per_s']:.1f}",
                format_bytes(row["resident_bytes"]),
                "-" if row["max_celsius"] is None else f"{row['max_celsius']:.0f} C",
            )
            for row in rows
        ],
    )


def _rows(client: Client, interval_s: float) -> list[dict[str, Any]]:
    """Return one row per model; the server's load is the same in each."""
    from edgephi.v1 import model_service_pb2

    models, plan = client.models(), client.plan()
    states = client.watch(interval_s)
    state = next(states)
    try:
        state = next(states)  # the first one has no speed yet
    except EdgephiError:
        if state.is_ready:
            raise
    finally:
        states.close()  # type: ignore[attr-defined]  # a generator, typed as an iterator
    return [
        {
            "model": model.name.removeprefix("models/"),
            "state": model_service_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
            "quantization": model.quantization,
            "size_bytes": model.size_bytes if model.HasField("size_bytes") else None,
            "context_tokens": model.context_tokens,
            "kv_tokens_used": state.num_used_pages * plan.page_tokens,
            "kv_tokens": state.num_pages * plan.page_tokens,
            "running": state.num_running,
            "waiting": state.num_waiting,
            "output_tokens_per_s": state.output_tokens_per_second,
            "resident_bytes": state.resident_bytes if state.HasField("resident_bytes") else None,
            "max_celsius": max((zone.celsius for zone in state.temperatures), default=None),
        }
        for model in models
    ]
