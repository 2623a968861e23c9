"""``edgephi serve``: a server in the foreground, until a signal."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import click

from edgephi.cli.compose import EngineKind, ServiceOptions, ServingPlan, open_service
from edgephi.cli.config_file import CONFIG_ENV, SERVE_PREFIX, resolved, use_config
from edgephi.cli.logs import LogFormat, LogLevel, configure_logs
from edgephi.cli.malloc import give_back_freed_memory
from edgephi.cli.options import answering_options, json_option
from edgephi.cli.planning import PlanningOptions
from edgephi.cli.ready_line import announce
from edgephi.cli.sd_notify import Notifier
from edgephi.cli.serving import LOADING_S, end_on_signals_while_loading, run_server
from edgephi.engine.admission import AdmissionConfig
from edgephi.errors import ConfigError
from edgephi.profile.machine.memory_limits import parse_bytes
from edgephi.profile.plan import KvDtype
from edgephi.profile.planning.plan_request import Prefer

_UNPLANNED_RUNNING = 4
_PLANNING_OPTIONS = ("floor", "accept_slower", "memory", "context", "prefer")

_FILE = click.Path(dir_okay=False, path_type=Path)


class _Size(click.ParamType[int]):
    """A number of bytes, such as ``4GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value, name="size")
        except ConfigError as error:
            self.fail(str(error), param, ctx)


@click.command("serve", short_help="Serve a model over gRPC.")
@click.option(
    "--config",
    type=_FILE,
    is_eager=True,
    expose_value=False,
    envvar=CONFIG_ENV,
    callback=use_config,
    help="YAML file with options, such as max_running: 2.  [default: as `edgephi config --help` says]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=50051, show_default=True, help="TCP port; 0 takes a free one.")
@click.option("--metrics-port", type=int, help="Port of a Prometheus page on --metrics-host.  [default: none]")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of the Prometheus page.")
@click.option("--tls-cert", type=_FILE, help="Certificate chain in PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key in PEM.")
@click.option("--tls-client-ca", type=_FILE, help="Ask clients for a certificate that these authorities signed.")
@click.option("--tokens", type=_FILE, help="Ask callers for a token of this file, which `edgephi token add` writes.")
@click.option(
    "--insecure-lan",
    is_flag=True,
    help="Listen on the network without TLS, or without tokens and certificates: anyone there can read or send.",
)
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
@click.option(
    "--memory",
    type=_Size(),
    metavar="SIZE",
    help="Most memory to use, such as 4GiB.  [default: what this machine leaves]",
)
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
    "--max-waiting",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Requests that may wait for a place; the last quarter is for clients that have none waiting.",
)
@click.option(
    "--max-waiting-per-client",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Requests of one client that may wait: of one token, certificate or address.",
)
@click.option(
    "--max-wait-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Refuse a further request of a client while the work that waits would take longer.",
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
@click.option(
    "--log-level",
    type=click.Choice([level.value for level in LogLevel]),
    default=LogLevel.INFO.value,
    show_default=True,
    help="Least severe lines of the log; debug also tells of probes.",
)
@click.option(
    "--otlp-endpoint",
    envvar=(f"{SERVE_PREFIX}OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    metavar="URL",
    help="Send OpenTelemetry traces to the collector there, such as http://127.0.0.1:4317.  [default: none]",
)
@json_option
@answering_options
def serve(
    *,
    service: ServiceOptions,
    floor: float,
    accept_slower: bool,
    memory: int | None,
    context: int | None,
    max_running: int | None,
    prefer: str,
    prefill_chunk: int | None,
    mixed_chunk: int | None,
    default_max_tokens: int | None,
    max_waiting: int,
    max_waiting_per_client: int,
    max_wait_seconds: float,
    grace: float,
    log_format: str,
    log_level: str,
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
      edgephi serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --tokens tokens.json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    import structlog

    from edgephi.server.credentials import open_credentials
    from edgephi.server.settings import ServerSettings
    from edgephi.server.tracing import check_tracing

    end_on_signals_while_loading()
    give_back_freed_memory()
    settings = ServerSettings(**network)  # before the model: a wrong address should not cost a minute
    configure_logs(LogFormat(log_format), level=LogLevel(log_level))
    check_tracing(settings.otlp_endpoint)
    open_credentials(settings, log=structlog.get_logger("edgephi.server"))  # the same: before the model
    _log_settings()
    notifier = Notifier.from_environment()
    notifier.tell(STATUS=f"loading {service.model}", EXTEND_TIMEOUT_USEC=round(LOADING_S * 1e6))
    options = dataclasses.replace(
        service, max_running=_UNPLANNED_RUNNING, default_max_tokens=default_max_tokens, isolated=True
    )
    planned: ServingPlan | None = None
    if service.engine is EngineKind.FAKE or service.kv_tokens is not None:
        _refuse_planning_options()
    else:
        planned = _plan(
            PlanningOptions(
                model=service.model,
                memory_bytes=memory,
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
        admission=AdmissionConfig(
            max_waiting=max_waiting, max_waiting_per_client=max_waiting_per_client, max_wait_s=max_wait_seconds
        ),
    )
    with open_service(options, planned=planned, progress=_LoadingProgress(notifier)) as local:
        run_server(
            local,
            settings,
            grace_s=grace,
            announce=functools.partial(announce, local, settings=settings, as_json=as_json),
            notifier=notifier,
        )


def _log_settings() -> None:
    """Log once what was chosen, and where; no option's value is a secret."""
    import structlog

    chosen = {
        name: f"{setting.value} ({setting.where or setting.source})"
        for name, setting in resolved(click.get_current_context()).items()
        if setting.source != "default"
    }
    structlog.get_logger("edgephi.cli").info("config.resolved", settings=chosen)


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


class _LoadingProgress:
    """Tells of a model that is compiled: the log of each kind of work once, the service manager that it goes on."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._label: str | None = None
        self._told_at = -float("inf")

    def __call__(self, label: str, _done: int, _total: int) -> None:
        now = time.monotonic()
        if label == self._label and now - self._told_at < 1:
            return
        self._told_at = now
        self._notifier.tell(STATUS=f"compiling: {label}", EXTEND_TIMEOUT_USEC=round(LOADING_S * 1e6))
        if label != self._label:
            self._label = label
            import structlog

            structlog.get_logger("edgephi.cli").info("model.compiling", step=label)
