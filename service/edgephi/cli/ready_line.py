"""What ``edgephi serve`` prints once requests are taken: one line for people, or one JSON object."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from edgephi.cli.output import print_json
from edgephi.cli.version import package_version
from edgephi.profile.plan import Plan, PlanKind

if TYPE_CHECKING:
    from edgephi.cli.compose import LocalService
    from edgephi.server.app import Server
    from edgephi.server.settings import ServerSettings


def announce(local: LocalService, server: Server, *, settings: ServerSettings, as_json: bool) -> None:
    """Print that requests are taken, where, of which model, and what to do next."""
    address = f"[{settings.host}]:{server.port}" if ":" in settings.host else f"{settings.host}:{server.port}"
    info = local.info
    if as_json:
        print_json(
            {
                "address": address,
                "tls": settings.has_tls,
                "metrics_port": server.metrics_port,
                "model": info.name,
                "quantization": info.quantization,
                "context_tokens": info.context_tokens,
                "kv_tokens": local.kv_tokens,
                "max_running": local.plan.max_running,
                "threads": local.threads,
                "level": local.level,
                "version": package_version(),
                "pid": os.getpid(),
            }
        )
        return
    security = "TLS" if settings.has_tls else "no TLS"
    threads = "1 thread" if local.threads == 1 else f"{local.threads} threads"
    computing = f"{threads}, {local.level}" if local.level is not None else "fake engine"
    reach = address if settings.host not in ("0.0.0.0", "::") else f"THIS-HOST:{server.port}"  # noqa: S104 - compared
    tls = " --tls-ca ca.pem" if settings.has_tls else ""
    if settings.tokens is not None:
        tls += " --token-file TOKEN"
    elif settings.tls_client_ca is not None:
        tls += " --tls-cert client.pem --tls-key client.key"
    metrics = "" if server.metrics_port is None else f", metrics on {settings.metrics_host}:{server.metrics_port}"
    click.echo(
        f"ready: {info.display_name} ({info.quantization}) on {address} ({security}){metrics}; "
        f"context {info.context_tokens}, {_load(local.plan)}kv {local.kv_tokens} tokens, {computing}. "
        f'Next: edgephi run --connect {reach}{tls} "turn on the kitchen light"'
    )


def _load(plan: Plan) -> str:
    """Return what was planned, for people; nothing where nothing was."""
    if plan.predicted is None or plan.predicted.each_full_tokens_per_s is None:
        return ""
    how = "as measured" if plan.kind is PlanKind.CALIBRATED else "as estimated"
    each = "" if plan.max_running == 1 else " each"
    return f"{plan.max_running} at once, {plan.predicted.each_full_tokens_per_s:.1f} tok/s{each} when full ({how}), "
