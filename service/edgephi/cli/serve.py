"""``edgephi serve``: a server in the foreground, until a signal."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.compose import EngineKind, LocalService, ServiceOptions, ServingPlan, open_service
from edgephi.cli.logs import LogFormat, configure_logs
from edgephi.cli.options import answering_options, json_option
from edgephi.cli.output import print_json
from edgephi.cli.planning import PlanningOptions
from edgephi.cli.version import package_version
from edgephi.errors import EngineFailed
from edgephi.profile.memory_limits import parse_bytes
from edgephi.profile.plan import KvDtype, Plan, PlanKind
from edgephi.profile.plan_request import Prefer

if TYPE_CHECKING:
    from edgephi.server.app import Server
    from edgephi.server.settings import ServerSettings

ENGINE_CHECK_S = 1.0
_UNPLANNED_RUNNING = 4
_PLANNING_OPTIONS = ("floor", "accept_slower", "memory", "context", "prefer")

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve", short_help="Serve a model over gRPC.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=50051, show_default=True, help="TCP port; 0 takes a free one.")
@click.option("--metrics-port", type=int, help="Port of a Prometheus page on --metrics-host.  [default: none]")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of the Prometheus page.")
@click.option("--tls-cert", type=_FILE, help="Certificate chain in PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key in PEM.")
@click.option("--tls-client-ca", type=_FILE, help="Ask clients for a certificate that these authorities signed.")
@click.option("--insecure-lan", is_flag=True, help="Listen on the network without TLS: anyone there can read and send.")
@click.option(
    "--floor",
    type=click.FloatRange(min=0, min_open=True),
    default=12.0,
    show_default=True,
    metavar="TOK/S",
    help="Least speed of each answer. The plan keeps it with every context full.",
)
@click.option(
    "--accept-slower", is_flag=True, help="Serve at what this machine can do where the floor is out of reach."
)
@click.option("--memory", metavar="SIZE", help="Most memory to use, such as 4GiB.  [default: what this machine leaves]")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of prompt and answer of each request.  [default: as many as memory and floor allow]",
)
@click.option(
    "--max-running",
    "--batch",
    "max_running",
    type=click.IntRange(min=1),
    help="Requests at once.  [default: as many as memory and floor allow]",
)
@click.option(
    "--prefer",
    type=click.Choice([kind.value for kind in Prefer]),
    default=Prefer.CONTEXT.value,
    show_default=True,
    help="What to have most of: long contexts, requests at once, or speed.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    help="Most prompt tokens in a step of their own.  [default: planned]",
)
@click.option(
    "--mixed-chunk",
    type=click.IntRange(min=1),
    help="Most prompt tokens in a step that other requests decode in; fewer keep their streams smoother."
    "  [default: planned]",
)
@click.option(
    "--default-max-tokens",
    type=click.IntRange(min=1),
    help="Longest answer of a request that names no limit.  [default: a fair share of the pages]",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running answers may take after SIGTERM.",
)
@click.option(
    "--log-format",
    type=click.Choice([form.value for form in LogFormat]),
    default=LogFormat.AUTO.value,
    show_default=True,
    help="Of the log on standard error; auto is console on a terminal and JSON elsewhere.",
)
@json_option
@answering_options
def serve(
    *,
    service: ServiceOptions,
    floor: float,
    accept_slower: bool,
    memory: str | None,
    context: int | None,
    max_running: int | None,
    prefer: str,
    prefill_chunk: int | None,
    mixed_chunk: int | None,
    default_max_tokens: int | None,
    grace: float,
    log_format: str,
    as_json: bool,
    **network: Any,
) -> None:
    """
    Serve a model over gRPC until SIGTERM or Ctrl-C.

    Context and requests at once are planned for this machine, so that memory suffices and each answer keeps --floor, as
    `edgephi plan` shows; what cannot be kept is refused before loading. --kv-tokens sets the pages by hand and plans
    nothing.

    One line on standard output says when requests are taken; with --json it is a JSON object. The log goes to standard
    error and never holds prompts or answers. After the first signal running answers may finish (--grace), new ones are
    refused, and the exit status is 0; a second signal ends the process at once. SIGTERM while the model is still
    being loaded ends it at once as well.

    \b
    Examples:
      edgephi serve
      edgephi serve --model phi3-mini-4k --memory 4GiB --floor 12 --metrics-port 9464
      edgephi serve --model phi3-mini-4k --context 2048 --accept-slower
      edgephi serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.server.settings import ServerSettings

    settings = ServerSettings(**network)  # before the model: a wrong address should not cost a minute
    configure_logs(LogFormat(log_format))
    # As process 1 of a container Python would ignore the signal until the server handles it itself.
    signal.signal(signal.SIGTERM, _stop_while_loading)
    options = dataclasses.replace(service, max_running=_UNPLANNED_RUNNING, default_max_tokens=default_max_tokens)
    planned: ServingPlan | None = None
    if service.engine is EngineKind.FAKE or service.kv_tokens is not None:
        _refuse_planning_options()
    else:
        planned = _plan(
            PlanningOptions(
                model=service.model,
                memory_bytes=None if memory is None else parse_bytes(memory),
                floor_tokens_per_s=floor,
                context_tokens=context,
                batch=max_running,
                prefer=Prefer(prefer),
                kv_dtype=KvDtype(service.kv_dtype),
                threads=service.threads,
                prefill_chunk_tokens=prefill_chunk,
                max_draft_tokens=service.max_draft_tokens,
            ),
            accept_slower=accept_slower,
        )
        options = planned.apply_to(options)
    options = dataclasses.replace(
        options,
        max_running=max_running or options.max_running,
        prefill_chunk_tokens=prefill_chunk or options.prefill_chunk_tokens,
        mixed_chunk_tokens=mixed_chunk or options.mixed_chunk_tokens,
    )
    with open_service(options, planned=planned, progress=_LogProgress()) as local:
        asyncio.run(_serve(local, settings, grace_s=grace, as_json=as_json))


def _refuse_planning_options() -> None:
    """Refuse options of a plan where none is made: ignoring them would promise what nobody keeps."""
    context = click.get_current_context()
    for option in _PLANNING_OPTIONS:
        if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{option.replace('_', '-')} is for a planned service; leave out --kv-tokens and --engine fake, or it"
            )


def _plan(options: PlanningOptions, *, accept_slower: bool) -> ServingPlan:
    """Plan, and log the plan once."""
    import structlog

    from edgephi.cli.serving_plan import plan_to_serve

    planned = plan_to_serve(options, accept_slower=accept_slower)
    plan, predicted = planned.plan, planned.plan.predicted
    structlog.get_logger("edgephi.cli").info(
        "plan.made",
        device=plan.device,
        kind=plan.kind.value,
        source=planned.source,
        context_tokens=plan.context_tokens,
        max_running=plan.max_running,
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        mixed_chunk_tokens=plan.mixed_chunk_tokens,
        kv_dtype=None if plan.kv_dtype is None else plan.kv_dtype.value,
        threads=plan.num_threads,
        floor_tokens_per_s=plan.floor_tokens_per_s,
        each_full_tokens_per_s=None if predicted is None else predicted.each_full_tokens_per_s,
        memory_peak_bytes=plan.memory.peak_bytes,
        memory_budget_bytes=plan.memory.budget_bytes,
        limit=None if plan.binding_limit is None else plan.binding_limit.value,
        notes=list(plan.notes),
    )
    return planned


def _stop_while_loading(_number: int, _frame: FrameType | None) -> None:
    # Not an exception: that would wait for a compiler, which ends by itself when nobody reads its reports.
    os._exit(0)


async def _serve(local: LocalService, settings: ServerSettings, *, grace_s: float, as_json: bool) -> None:
    """
    Run one server until a signal has stopped it.

    Raises:
        EngineFailed: If the engine ended by itself, so that a service manager starts a new process.
    """
    from edgephi.server.app import Server

    server = Server(local.served(), settings)
    asked_to_stop = _stop_on_signals()
    try:
        await server.start()
        ready = asyncio.create_task(server.wait_ready())
        await asyncio.wait({ready, asked_to_stop}, return_when=asyncio.FIRST_COMPLETED)
        if asked_to_stop.done():
            ready.cancel()
            return
        ready.result()  # raises when the model could not produce its first token
        _announce(local, server, settings, as_json=as_json)
        while not asked_to_stop.done():
            await asyncio.wait({asked_to_stop}, timeout=ENGINE_CHECK_S)
            if not local.loop.is_alive:
                raise EngineFailed("the engine ended by itself; the log says why")
    finally:
        await server.stop(grace_s)


def _stop_on_signals() -> asyncio.Future[None]:
    """Return a future that a first SIGTERM or SIGINT resolves; a second one ends the process."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if not asked.done():
            asked.set_result(None)
        else:
            # The engine may be in a forward that takes seconds; whoever asks twice does not want to wait for it.
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return asked


def _announce(local: LocalService, server: Server, settings: ServerSettings, *, as_json: bool) -> None:
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
    tls = " --tls-ca CA.pem" if settings.has_tls else ""
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


class _LogProgress:
    """Logs each kind of work once while a model is compiled."""

    def __init__(self) -> None:
        self._label: str | None = None

    def __call__(self, label: str, _done: int, _total: int) -> None:
        if label == self._label:
            return
        self._label = label
        import structlog

        structlog.get_logger("edgephi.cli").info("model.compiling", step=label)
