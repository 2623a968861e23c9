"""
Writes the Grafana dashboard beside it: ``python deploy/grafana/generate.py``, or ``--check`` to compare only.

Owns which panels there are and what they ask. The queries use names of docs/observability.md; a test holds them against
the page of a running server.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("edgephi.json")

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHT = 8
_ON = '{instance=~"$instance"}'
_WINDOW = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """
    A chart.

    Attributes:
        title: What it answers.
        unit: Grafana's name of the unit.
        queries: (legend, PromQL) of each line; ``@`` stands for the chosen servers.
        kind: ``timeseries`` or ``stat``.
        width: Of 24 columns.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8


def _quantiles(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"p{percent}", f"histogram_quantile({percent / 100:g}, sum by (le) (rate({name}_bucket@{_WINDOW})))")
        for percent in (50, 95, 99)
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Takes requests", "bool_yes_no", (("", "min(edgephi_server_ready@)"),), "stat", 4),
            Panel("Speed of one answer", "short", (("tok/s", "edgephi_stream_tokens_per_second@"),), "stat", 4),
            Panel("Floor", "short", (("tok/s", "edgephi_plan_floor_tokens_per_second@"),), "stat", 4),
            Panel("Running", "short", (("", "edgephi_requests_running@"),), "stat", 4),
            Panel("Waiting", "short", (("", "edgephi_requests_waiting@"),), "stat", 4),
            Panel("Up for", "s", (("", "time() - process_start_time_seconds@"),), "stat", 4),
        ),
    ),
    (
        "Speed",
        (
            Panel(
                "Speed of one answer against floor and prediction (tok/s)",
                "short",
                (
                    (
                        "measured",
                        f"rate(edgephi_engine_decode_tokens_total@{_WINDOW})"
                        f" / rate(edgephi_engine_decode_stream_seconds_total@{_WINDOW})",
                    ),
                    ("predicted for this load", "edgephi_stream_predicted_tokens_per_second@"),
                    ("measured beside it", "edgephi_stream_measured_tokens_per_second@"),
                    ("plan, empty contexts", "edgephi_plan_empty_tokens_per_second@"),
                    ("plan, full contexts", "edgephi_plan_full_tokens_per_second@"),
                    ("floor", "edgephi_plan_floor_tokens_per_second@"),
                ),
                width=16,
            ),
            Panel("Between two parts of an answer", "s", _quantiles("edgephi_inter_token_latency_seconds")),
            Panel(
                "Time to first token",
                "s",
                (
                    *_quantiles("edgephi_time_to_first_token_seconds"),
                    ("plan, 512 tokens alone", "edgephi_plan_time_to_first_token_seconds@"),
                ),
            ),
            Panel("Whole answers", "s", _quantiles("edgephi_request_duration_seconds")),
            Panel(
                "Tokens per second, all answers",
                "short",
                (
                    ("generated", f"rate(edgephi_engine_generated_tokens_total@{_WINDOW})"),
                    ("of them guessed", f"rate(edgephi_engine_accepted_tokens_total@{_WINDOW})"),
                    ("prompts", f"rate(edgephi_engine_prefilled_tokens_total@{_WINDOW})"),
                ),
            ),
        ),
    ),
    (
        "Load",
        (
            Panel(
                "Requests",
                "short",
                (
                    ("running", "edgephi_requests_running@"),
                    ("waiting", "edgephi_requests_waiting@"),
                    ("most at once now", "edgephi_governor_max_running@"),
                    ("most at once, plan", "edgephi_plan_max_running@"),
                ),
            ),
            Panel("Time in the queue", "s", _quantiles("edgephi_request_queue_time_seconds")),
            Panel(
                "Refused, by limit",
                "reqps",
                (("{{limit}}", f"sum by (limit) (rate(edgephi_requests_refused_total@{_WINDOW}))"),),
            ),
            Panel(
                "Answers, by end",
                "reqps",
                (("{{finish_reason}}", f"sum by (finish_reason) (rate(edgephi_requests_finished_total@{_WINDOW}))"),),
            ),
            Panel(
                "Calls, by code",
                "reqps",
                (
                    (
                        "{{grpc_method}} {{grpc_code}}",
                        f"sum by (grpc_method, grpc_code) (rate(grpc_server_handled_total@{_WINDOW}))",
                    ),
                ),
            ),
            Panel(
                "Keys and values",
                "percentunit",
                (("in use", "edgephi_kv_cache_usage_ratio@"), ("kept for reuse", "edgephi_kv_cache_kept_ratio@")),
            ),
        ),
    ),
    (
        "Device",
        (
            Panel(
                "Memory against plan",
                "bytes",
                (
                    ("{{process}} now", "edgephi_process_resident_bytes@"),
                    ("measured peak", "edgephi_memory_peak_bytes@"),
                    ("predicted peak so far", "edgephi_memory_peak_predicted_bytes@"),
                    ("plan", "edgephi_plan_memory_peak_bytes@"),
                    ("budget", "edgephi_plan_memory_budget_bytes@"),
                ),
            ),
            Panel(
                "Memory left",
                "bytes",
                (
                    ("machine", "edgephi_device_memory_available_bytes@"),
                    ("control group", "edgephi_cgroup_memory_left_bytes@"),
                ),
            ),
            Panel(
                "Time lost to waiting for memory",
                "percentunit",
                (("{{tasks}}", "edgephi_device_memory_pressure_ratio@"),),
            ),
            Panel(
                "Temperature",
                "celsius",
                (
                    ("{{zone}}", "edgephi_device_temperature_celsius@"),
                    ("{{zone}} slows cores", "edgephi_device_throttle_temperature_celsius@"),
                ),
            ),
            Panel(
                "Clocks",
                "hertz",
                (
                    ("cores {{cpus}}", "edgephi_device_frequency_hertz@"),
                    ("cores {{cpus}}, allowed", "edgephi_device_frequency_limit_hertz@"),
                ),
            ),
            Panel(
                "Held back",
                "short",
                (
                    ("throttled", "edgephi_device_throttled@"),
                    ("under-voltage", "edgephi_device_under_voltage@"),
                    ("CPU quota, s/s", f"rate(edgephi_cgroup_cpu_throttled_seconds_total@{_WINDOW})"),
                ),
            ),
        ),
    ),
    (
        "Governor and engine",
        (
            Panel(
                "Steps below the plan",
                "short",
                (
                    ("for speed", "edgephi_governor_speed_level@"),
                    ("for memory", "edgephi_governor_memory_level@"),
                    ("floor missed", "edgephi_governor_floor_missed@"),
                ),
            ),
            Panel(
                "Changes by the governor in an hour",
                "short",
                (
                    ("speed", "changes(edgephi_governor_speed_level@[1h])"),
                    ("memory", "changes(edgephi_governor_memory_level@[1h])"),
                ),
            ),
            Panel(
                "Engine",
                "short",
                (
                    ("starts", "edgephi_engine_starts_total@"),
                    ("deaths", "edgephi_engine_deaths_total@"),
                    ("quarantined requests", "edgephi_requests_quarantined_total@"),
                    ("up", "edgephi_engine_up@"),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(_placed({"type": "row", "title": title, "collapsed": False, "panels": []}, panels, 0, y, 24, 1))
        x, y = 0, y + 1
        for panel in row:
            height = _HEIGHT // 2 if panel.kind == "stat" else _HEIGHT
            if x + panel.width > _COLUMNS:
                x, y = 0, y + height
            panels.append(_placed(_chart(panel), panels, x, y, panel.width, height))
            x += panel.width
        y += height
    return {
        "uid": "edgephi",
        "title": "edgephi",
        "description": "Made by deploy/grafana/generate.py; change that file, not this one.",
        "tags": ["edgephi"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Server",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": "label_values(edgephi_server_ready, instance)", "refId": "instance"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def _placed(panel: dict[str, Any], others: list[Any], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"id": len(others) + 1, **panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _chart(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.replace("@", _ON),
                "legendFormat": legend or "__auto",
            }
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }


def main() -> int:
    """Write the dashboard, or with ``--check`` say whether the file is the one that would be written."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        is_fresh = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        if not is_fresh:
            print(f"{TARGET.name} is stale; run: make observability", file=sys.stderr)
        return 0 if is_fresh else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
