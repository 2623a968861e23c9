"""
Reading a file of boards: one family of devices, of which each variant is a board.

Owns the names of the fields and their bounds; docs/devices.md describes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgephi.profile.boards.board import Board, BoardCluster, Evidence, Figure, PublishedSpeed, ThermalEnvelope
from edgephi.profile.boards.yamlfields import Fields, read_fields
from edgephi.profile.machine.isa import ISA_LEVELS

GIB = 1 << 30
MAX_GIB = 4096
MAX_GBPS = 5000

_NAME = r"[a-z0-9][a-z0-9.-]{0,62}"
_NAME_RULE = "1 to 63 lower-case letters, digits, dots and hyphens"


def read_boards(path: Path, *, taken: Mapping[str, Path]) -> tuple[Board, ...]:
    """
    Read the boards of a file.

    Args:
        path: YAML of at most 64 KiB.
        taken: Names that other files have already, and which files.

    Returns:
        A board for each variant, in the file's order.

    Raises:
        ConfigError: If the file cannot be read or anything in it is not as it must be; with the file, the line, the
            field and what is allowed.
    """
    fields = read_fields(path)
    family = fields.text("family", pattern=_NAME, rule=_NAME_RULE)
    title = fields.text("title")
    isa_level = fields.choice("isa_level", tuple(ISA_LEVELS))
    matches = fields.texts("matches") if fields.has("matches") else ()
    clusters = [_cluster(item) for item in fields.lists("clusters")]
    bandwidth = _figure(fields, "bandwidth_gbps", 0.1, MAX_GBPS)
    effective = _figure(fields, "effective_gbps", 0.1, MAX_GBPS)
    if effective.value > bandwidth.value:
        _fail_above(fields, "effective_gbps", effective.value, "bandwidth_gbps", bandwidth.value)
    thermal = _thermal(fields.fields("thermal")) if fields.has("thermal") else None
    published = tuple(_speed(item) for item in fields.lists("published")) if fields.has("published") else ()
    boards: dict[str, Board] = {}
    for variant in fields.lists("variants"):
        name = variant.text("name", pattern=_NAME, rule=_NAME_RULE)
        owner = path if name in boards else taken.get(name)
        if owner is not None:
            variant.fail(variant.line("name"), variant.label("name"), f"{name!r} is taken by {owner}; choose another")
        memory = _figure(variant, "memory_gib", 0.25, MAX_GIB)
        reserve = _figure(variant, "os_reserve_gib", 0, MAX_GIB)
        if reserve.value >= memory.value:
            _fail_above(variant, "os_reserve_gib", reserve.value, "memory_gib", memory.value)
        variant.done()
        boards[name] = Board(
            name=name,
            title=f"{title}, {memory.value:g} GB",
            family=family,
            isa_level=isa_level,
            clusters=tuple(sorted(clusters, key=lambda cluster: -cluster.max_mhz.value)),
            memory_bytes=_in_bytes(memory),
            os_reserve_bytes=_in_bytes(reserve),
            bandwidth_gbps=bandwidth,
            effective_gbps=effective,
            thermal=thermal,
            published=published,
            matches=matches,
        )
    fields.done()
    return tuple(boards.values())


def _figure(fields: Fields, name: str, low: float, high: float) -> Figure:
    figure = fields.fields(name)
    value = figure.number("value", low, high)
    evidence = Evidence(figure.choice("evidence", tuple(kind.value for kind in Evidence)))
    source = figure.text("source")
    figure.done()
    return Figure(value, evidence, source)


def _in_bytes(figure: Figure) -> Figure:
    return Figure(round(figure.value * GIB), figure.evidence, figure.source)


def _cluster(fields: Fields) -> BoardCluster:
    core = fields.text("core") if fields.has("core") else None
    count = int(fields.number("count", 1, 1024, is_whole=True))
    max_mhz = _figure(fields, "max_mhz", 100, 10_000)
    fields.done()
    return BoardCluster(core=core, count=count, max_mhz=max_mhz)


def _thermal(fields: Fields) -> ThermalEnvelope:
    envelope = ThermalEnvelope(
        sustained_fraction=_figure(fields, "sustained_fraction", 0.05, 1),
        cooled_fraction=_figure(fields, "cooled_fraction", 0.05, 1) if fields.has("cooled_fraction") else None,
        throttle_celsius=_figure(fields, "throttle_celsius", 30, 125) if fields.has("throttle_celsius") else None,
    )
    fields.done()
    return envelope


def _speed(fields: Fields) -> PublishedSpeed:
    prefill = "prefill_tokens_per_s"
    speed = PublishedSpeed(
        model=fields.text("model"),
        runtime=fields.text("runtime"),
        decode_tokens_per_s=fields.number("decode_tokens_per_s", 0.001, 10_000),
        prefill_tokens_per_s=fields.number(prefill, 0.001, 1_000_000) if fields.has(prefill) else None,
        source=fields.text("source"),
    )
    fields.done()
    return speed


def _fail_above(fields: Fields, name: str, value: float, limit_name: str, limit: float) -> None:
    message = f"{value:g} is too much; expected less than {fields.label(limit_name)}, {limit:g}"
    fields.fail(fields.line(name), f"{fields.label(name)}.value", message)
