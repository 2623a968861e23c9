"""``edgephi devices``: the boards edgephi knows, and where each of their figures comes from."""

from __future__ import annotations

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.options import json_option
from edgephi.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgephi.profile.boards.board import Board, BoardCluster, Figure
    from edgephi.profile.boards.catalogue import Catalogue

DEVICE_FILES_ENV = "EDGEPHI_DEVICE_FILES"
"""Files of boards that every command reads, separated as in PATH."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MAX_WIDTH = 110

device_file_option = click.option(
    "--device-file",
    type=_FILE,
    multiple=True,
    help=f"Also read boards from this file; may be repeated. Those of ${DEVICE_FILES_ENV} and of the configuration"
    " folder are always read.",
)


def open_catalogue(device_files: Sequence[Path] = ()) -> Catalogue:
    """
    Read the shipped boards, and those of the configuration folder, ``$EDGEPHI_DEVICE_FILES`` and *device_files*.

    Raises:
        ConfigError: If a file is wrong, with its name, the line and the field.
    """
    from edgephi.profile.boards.catalogue import load_catalogue

    named = [Path(name).expanduser() for name in os.environ.get(DEVICE_FILES_ENV, "").split(os.pathsep) if name]
    files = [path.resolve() for path in (*sorted(devices_folder().glob("*.yaml")), *named, *device_files)]
    return load_catalogue(files)


def devices_folder() -> Path:
    """Return the folder whose ``*.yaml`` files are the user's own boards. It may not exist."""
    import platformdirs

    return Path(platformdirs.user_config_dir("edgephi", appauthor=False)) / "devices"


@click.command("devices", short_help="List the boards edgephi knows.")
@click.argument("name", metavar="[NAME]", required=False)
@device_file_option
@json_option
def devices(*, name: str | None, device_file: tuple[Path, ...], as_json: bool) -> None:
    """
    List known boards with their cores, memory and bandwidth; with NAME, all figures of one and where each comes from.

    Bandwidth is in GB/s: what the memory can do on paper, and what all cores reading it reach. A star marks the board
    that this machine is. How to add a board of your own: docs/devices.md.

    \b
    Examples:
      edgephi devices
      edgephi devices raspberry-pi-5-8gb
      edgephi devices --device-file my-board.yaml --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.profile.machine.probe import probe

    catalogue = open_catalogue(device_file)
    here = catalogue.match(probe())
    if name is not None:
        board = catalogue.get(name)
        if as_json:
            print_json(_as_json(board, here))
        else:
            _print_board(board, here)
    elif as_json:
        print_json([_as_json(board, here) for board in catalogue.boards])
    else:
        _print_list(catalogue.boards, here)


def _print_list(boards: Sequence[Board], here: Board | None) -> None:
    print_table(
        ("", "NAME", "CORES", "ISA", "MEMORY", "ON PAPER", "READS", "KNOWN AS"),
        [
            (
                "*" if board == here else "",
                board.name,
                _cores(board.clusters),
                board.isa_level,
                f"{board.memory_bytes.value / (1 << 30):g} GB",
                f"{board.bandwidth_gbps.value:.1f}",
                f"{board.effective_gbps.value:.1f}",
                board.effective_gbps.evidence.value,
            )
            for board in boards
        ],
    )
    if here is None:
        click.echo("This machine is none of them; `edgephi calibrate` measures it.", err=True)


def _print_board(board: Board, here: Board | None) -> None:
    click.echo(board.title + (" (this machine)" if board == here else ""))
    click.echo(f"{'instruction set':<20}{board.isa_level}")
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    for label, value, figure in _figures(board):
        _print_wrapped(f"{label:<20}{value:<16}{figure.evidence.value:<13}", figure.source, width)
    for speed in board.published:
        prefill = speed.prefill_tokens_per_s
        value = f"{speed.decode_tokens_per_s:g} tok/s"
        note = f"{speed.model}, {speed.runtime}: {speed.source}"
        if prefill is not None:
            note = f"prompt {prefill:g} tok/s; {note}"
        _print_wrapped(f"{'others measured':<20}{value:<16}{'published':<13}", note, width)


def _figures(board: Board) -> Iterator[tuple[str, str, Figure]]:
    for cluster in board.clusters:
        yield f"cores {_cores((cluster,))}", f"{cluster.max_mhz.value:g} MHz", cluster.max_mhz
    yield "memory", _gib(board.memory_bytes), board.memory_bytes
    yield "kept by the system", _gib(board.os_reserve_bytes), board.os_reserve_bytes
    yield "memory on paper", f"{board.bandwidth_gbps.value:g} GB/s", board.bandwidth_gbps
    yield "all cores reading", f"{board.effective_gbps.value:g} GB/s", board.effective_gbps
    if board.thermal is None:
        return
    yield "speed when hot", f"{board.thermal.sustained_fraction.value:.0%}", board.thermal.sustained_fraction
    if board.thermal.cooled_fraction is not None:
        yield "with cooling", f"{board.thermal.cooled_fraction.value:.0%}", board.thermal.cooled_fraction
    if board.thermal.throttle_celsius is not None:
        yield "slows down from", f"{board.thermal.throttle_celsius.value:g} C", board.thermal.throttle_celsius


def _print_wrapped(head: str, text: str, width: int) -> None:
    # On a narrow terminal the text starts on a line of its own.
    indent = " " * len(head) if width - len(head) >= 30 else " " * 4
    lines = textwrap.wrap(text, max(width - len(indent), 20), break_on_hyphens=False)
    if len(indent) < len(head):
        lines.insert(0, "")
    for number, line in enumerate(lines):
        click.echo((head + line if number == 0 else indent + line).rstrip())


def _cores(clusters: Sequence[BoardCluster]) -> str:
    """Return cores in short, such as ``X3 + A715 x4``, the same design in one."""
    counts: dict[str, int] = {}
    for cluster in clusters:
        core = "any" if cluster.core is None else cluster.core.removeprefix("Cortex-")
        counts[core] = counts.get(core, 0) + cluster.count
    return " + ".join(core if count == 1 else f"{core} x{count}" for core, count in counts.items())


def _gib(figure: Figure) -> str:
    return f"{figure.value / (1 << 30):.2f} GB"


def _as_json(board: Board, here: Board | None) -> dict[str, Any]:
    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: getattr(value, "value", value) if key == "evidence" else value for key, value in pairs}

    return {**dataclasses.asdict(board, dict_factory=plain), "is_this_machine": board == here}
