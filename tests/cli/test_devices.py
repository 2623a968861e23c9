from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgephi.cli.devices import devices, devices_folder, open_catalogue
from edgephi.errors import ConfigError
from edgephi.profile.boards.catalogue import load_catalogue

OWN = """\
family: acme
title: Acme
isa_level: armv8.0
clusters:
  - count: 4
    max_mhz: {value: 1500, evidence: assumed, source: a guess}
bandwidth_gbps: {value: 12.8, evidence: theoretical, source: its parts}
effective_gbps: {value: 5.5, evidence: measured, source: calibrate}
variants:
  - name: NAME
    memory_gib: {value: 4, evidence: published, source: as sold}
    os_reserve_gib: {value: 0.5, evidence: assumed, source: a guess}
"""


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's boards."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EDGEPHI_DEVICE_FILES", raising=False)


def run(*arguments: str | Path, columns: int = 120) -> Result:
    """Run the command."""
    return CliRunner().invoke(devices, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def own_file(path: Path, name: str) -> Path:
    """Write a file with one board of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OWN.replace("NAME", name))
    return path


def test_the_list_has_a_line_per_board() -> None:
    """The list names each board with cores, memory and both bandwidths, those of no board in particular last."""
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    boards = load_catalogue().boards
    assert len(lines) == len(boards) + 1
    (line,) = [line for line in lines if " raspberry-pi-5-8gb " in line]
    assert line.split() == [
        "raspberry-pi-5-8gb", "A76", "x4", "armv8.2-dotprod", "8", "GB", "17.1", "11.6", "published",
    ]  # fmt: skip
    assert "X4 + A720 x5 + A520 x2" in result.stdout
    assert lines[-1].split()[0].startswith("generic-")
    assert max(map(len, lines)) <= 120


def test_a_board_shows_each_figure_with_its_source() -> None:
    """With a name, every figure stands with its evidence and the whole of its source."""
    board = load_catalogue().get("raspberry-pi-5-8gb")
    shown = " ".join(run(board.name).stdout.split())
    assert board.title in shown
    assert board.thermal is not None
    for figure in (board.bandwidth_gbps, board.effective_gbps, board.memory_bytes, board.thermal.sustained_fraction):
        assert f"{figure.evidence.value} {figure.source}" in shown
    for speed in board.published:
        assert f"{speed.decode_tokens_per_s:g} tok/s published {speed.model}, {speed.runtime}: {speed.source}" in shown


def test_a_prompt_speed_is_shown_where_it_is_known() -> None:
    """Where others measured the prompt as well, that is said."""
    assert "prompt 126 tok/s" in run("orange-pi-5-8gb").stdout


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_board_fits_the_terminal(columns: int) -> None:
    """Sources are wrapped to the terminal's width, on a narrow one on lines of their own."""
    lines = run("iphone-14-a16", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= max(columns, 52)


def test_json_has_every_figure(tmp_path: Path) -> None:
    """JSON is a list of all boards, or with a name that one; figures are objects with value, evidence and source."""
    everything = json.loads(run("--json").stdout)
    assert [entry["name"] for entry in everything] == [board.name for board in load_catalogue().boards]
    entry = json.loads(run("raspberry-pi-5-8gb", "--json").stdout)
    assert entry == next(other for other in everything if other["name"] == "raspberry-pi-5-8gb")
    assert entry["bandwidth_gbps"]["evidence"] == "theoretical"
    assert entry["clusters"][0] | {"max_mhz": None} == {"core": "Cortex-A76", "count": 4, "max_mhz": None}
    assert entry["memory_bytes"]["value"] == 8 << 30
    assert entry["is_this_machine"] is False


def test_own_boards_are_read_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards come from the configuration folder, the environment variable and the option, each file once."""
    own_file(devices_folder() / "one.yaml", "own-1")
    named = [own_file(tmp_path / f"{name}.yaml", f"own-{name}") for name in ("two", "three")]
    monkeypatch.setenv("EDGEPHI_DEVICE_FILES", os.pathsep.join(map(str, named)))
    four = own_file(tmp_path / "four.yaml", "own-four")
    assert devices_folder() == tmp_path / "config" / "edgephi" / "devices"
    result = run("--device-file", four, "--device-file", named[0], "--json")
    names = [entry["name"] for entry in json.loads(result.stdout)]
    assert names[-4:] == ["own-1", "own-two", "own-three", "own-four"]
    assert "Acme, 4 GB" in run("--device-file", four, "own-four").stdout


def test_a_wrong_file_is_named_with_its_line(tmp_path: Path) -> None:
    """A wrong board in the configuration folder stops the command with file, line and field."""
    path = own_file(devices_folder() / "bad.yaml", "Bad Name")
    with pytest.raises(ConfigError, match=r"bad\.yaml:10: variants\[0\]\.name: found 'Bad Name'"):
        open_catalogue()
    assert isinstance(run().exception, ConfigError)
    assert str(path) in str(run().exception)


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there is a wrong command line, or from the environment an error that names it."""
    assert run("--device-file", tmp_path / "none.yaml").exit_code == 2
    monkeypatch.setenv("EDGEPHI_DEVICE_FILES", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        open_catalogue()


def test_an_unknown_name_is_refused() -> None:
    """A name that no board has ends the command with similar ones."""
    error = run("raspberry-pi-9").exception
    assert isinstance(error, ConfigError)
    assert "did you mean raspberry-pi-" in str(error)
