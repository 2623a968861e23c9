"""The dashboard and the alerts ask for what a server reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.server.promql import Selector, grouping_labels, selectors
from tests.server.watched import ALL_SENSORS, EXPECTED, PLANNED

from edgephi.server.metrics import Metrics
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "edgephi.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
# What Prometheus itself adds to each series.
SCRAPED = {"instance", "job"}


def queries() -> list[str]:
    """Return every query of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def problems(expression: str, page: set[str]) -> list[str]:
    """Return what an expression asks for that a page of these names does not have."""
    labels = {family.name: set(family.labels) for family in Metrics(CollectorRegistry(), model="").families()}
    found: list[str] = []
    for selector in selectors(expression):
        name = selector.name
        base = next((name.removesuffix(end) for end in ("_bucket", "_sum", "_count") if name.endswith(end)), name)
        if name not in page:
            found.append(f"no metric {name}")
        elif not selector.labels <= labels.get(base, set()) | SCRAPED:
            found.append(f"{name} has no labels {sorted(selector.labels - labels.get(base, set()) - SCRAPED)}")
    known = set().union(*labels.values()) | SCRAPED | {"le"}
    return found + [f"nothing has the label {label}" for label in grouping_labels(expression) - known]


async def names_on(running: Any, channel: grpc.aio.Channel) -> set[str]:
    """Return every name on the page of a server that has answered, those without a series at present included."""
    request = pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content="Go")])
    _ = [response async for response in GenerationServiceStub(channel).Chat(request)]
    await running.wait_finished("Chat", 1)
    series = {name.split("{")[0] for name in await running.page()}
    return series | {family.name for family in running.server._observability.metrics.registry.collect()} | {"up"}


async def test_every_query_asks_for_what_is_on_the_page(serve: Any) -> None:
    """Each metric and label of the dashboard's queries and of the alerts is on the page of a real server."""
    async with (
        serve(metrics_port=0, planned=PLANNED, expected=EXPECTED, probe_live=lambda: ALL_SENSORS) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        page = await names_on(running, channel)
    # Counters have their suffix on the page and not in their family's name.
    page |= {f"{name}_total" for name in page}
    found = {expression: problems(expression, page) for expression in [*queries(), *(rule["expr"] for rule in RULES)]}
    assert len(found) > 60
    assert {expression: names for expression, names in found.items() if names} == {}
    assert problems("rate(edgephi_generated_tokens_total[5m])", page) == ["no metric edgephi_generated_tokens_total"]
    assert problems('edgephi_device_throttled{zone="a"}', page) == ["edgephi_device_throttled has no labels ['zone']"]
    assert problems("sum by (limits) (edgephi_engine_up)", page) == ["nothing has the label limits"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a", [("a", set())]),
        ('rate(a_total{x="y", z=~"b{1}"}[5m]) / 2', [("a_total", {"x", "z"})]),
        ("sum by (le, x) (rate(a_bucket[$__rate_interval]))", [("a_bucket", set())]),
        ("time() - b > 7 * 86400 and c", [("b", set()), ("c", set())]),
        ("a < 64e6 or b", [("a", set()), ("b", set())]),
    ],
)
def test_selectors_are_found(expression: str, expected: list[tuple[str, set[str]]]) -> None:
    """Names and labels are told from functions, groupings, ranges and numbers."""
    assert list(selectors(expression)) == [Selector(name, frozenset(labels)) for name, labels in expected]


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    """Speed beside floor and prediction, refusals, memory beside the plan, heat, governor, engine and codes."""
    asked = " ".join(queries())
    for name in (
        "edgephi_plan_floor_tokens_per_second",
        "edgephi_stream_predicted_tokens_per_second",
        "edgephi_time_to_first_token_seconds",
        "edgephi_requests_waiting",
        "edgephi_requests_refused_total",
        "edgephi_engine_generated_tokens_total",
        "edgephi_kv_cache_usage_ratio",
        "edgephi_plan_memory_peak_bytes",
        "edgephi_device_temperature_celsius",
        "edgephi_device_throttled",
        "edgephi_governor_speed_level",
        "edgephi_engine_starts_total",
        "grpc_server_handled_total",
    ):
        assert name in asked


def test_panels_neither_overlap_nor_stick_out() -> None:
    """Each panel has its own id and its own place within 24 columns."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_every_alert_says_what_to_do() -> None:
    """Each alert has a name of its own, a severity, a summary and an action."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
