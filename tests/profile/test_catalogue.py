"""The catalogue: what is shipped, how a user's file is checked, and how a machine is recognised."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgephi.errors import ConfigError
from edgephi.profile.boards import yamlfields
from edgephi.profile.boards.catalogue import Board, Catalogue, Evidence, Figure, load_catalogue, shipped_files
from edgephi.profile.machine.cores import CORE_NAMES
from edgephi.profile.machine.isa import ISA_LEVELS
from edgephi.profile.machine.probe import DeviceFacts, probe

GIB = 1 << 30
DOCUMENT = Path(__file__).parents[2] / "docs" / "devices.md"
CATALOGUE = load_catalogue()
PARTS = {name: part for (_, part), name in CORE_NAMES.items()}

GOOD = """\
family: acme
title: Acme
isa_level: armv8.0
matches:
  - Acme Edge
clusters:
  - core: Cortex-A72
    count: 4
    max_mhz: {value: 1500, evidence: assumed, source: a guess}
bandwidth_gbps: {value: 12.8, evidence: theoretical, source: its parts}
effective_gbps: {value: 5.5, evidence: measured, source: calibrate}
thermal:
  sustained_fraction: {value: 0.8, evidence: assumed, source: a guess}
published:
  - model: some
    runtime: any
    decode_tokens_per_s: 2
    source: somewhere
variants:
  - name: acme-4gb
    memory_gib: {value: 4, evidence: published, source: as sold}
    os_reserve_gib: {value: 0.5, evidence: assumed, source: a guess}
"""


def figures(board: Board) -> Iterator[Figure]:
    """All figures of a board."""
    yield from (cluster.max_mhz for cluster in board.clusters)
    yield from (board.memory_bytes, board.os_reserve_bytes, board.bandwidth_gbps, board.effective_gbps)
    if board.thermal is not None:
        optional = (board.thermal.cooled_fraction, board.thermal.throttle_celsius)
        yield from (board.thermal.sustained_fraction, *(figure for figure in optional if figure is not None))


def refused(tmp_path: Path, content: str | bytes) -> str:
    """Return the message a file is refused with, without the folder."""
    path = tmp_path / "own.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_catalogue([path])
    return str(caught.value).replace(f"{tmp_path}/", "")


def machine(
    root: Path,
    *,
    board: str | None,
    cores: list[tuple[str | None, int]],
    total_gib: float | None,
    dmi: bool = False,
) -> DeviceFacts:
    """Probe a constructed tree: cores of (design, count), the board's name, and what the kernel counts as memory."""
    designs = [design for design, count in cores for _ in range(count)]
    cpuinfo = [
        f"processor\t: {number}\n"
        + ("" if design is None else f"CPU implementer\t: 0x41\nCPU part\t: {PARTS[design]:#x}\n")
        for number, design in enumerate(designs)
    ]
    files = {"proc/cpuinfo": "\n".join(cpuinfo), "sys/devices/system/cpu/online": f"0-{len(designs) - 1}\n"}
    for number, design in enumerate(designs):
        khz = 1_000_000 + 1000 * PARTS.get(design or "", 0)
        files[f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq"] = f"{khz}\n"
    if board is not None:
        files["sys/class/dmi/id/product_name" if dmi else "proc/device-tree/model"] = f"{board}\0"
    if total_gib is not None:
        files["proc/meminfo"] = f"MemTotal: {int(total_gib * (1 << 20))} kB\n"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return probe(root, arch="aarch64")


def name_of(board: Board | None) -> str | None:
    """Name of a board, or None."""
    return None if board is None else board.name


@pytest.mark.parametrize("board", CATALOGUE.boards, ids=lambda board: board.name)
def test_every_figure_has_a_source(board: Board) -> None:
    """Each figure of a shipped board says how it is known and where it was read or why it is assumed."""
    for figure in figures(board):
        assert isinstance(figure.evidence, Evidence)
        assert len(figure.source) >= 10, figure
    for speed in board.published:
        assert len(speed.source) >= 10, speed


@pytest.mark.parametrize("board", CATALOGUE.boards, ids=lambda board: board.name)
def test_shipped_boards_are_plausible(board: Board) -> None:
    """Cores read no more than the memory has on paper, something is left for a model, and levels and designs exist."""
    assert board.effective_gbps.value <= board.bandwidth_gbps.value
    assert board.memory_bytes.value - board.os_reserve_bytes.value >= 0.5 * GIB
    assert board.isa_level in ISA_LEVELS
    clocks = [cluster.max_mhz.value for cluster in board.clusters]
    assert clocks == sorted(clocks, reverse=True)
    if board.family != "iphone-14-a16":  # Apple's designs report to no Linux of ours
        assert all(cluster.core is None or cluster.core in PARTS for cluster in board.clusters)


def test_the_devices_of_the_scope_are_there() -> None:
    """Every device edgephi is made for has its boards, each size of memory its own."""
    names = {board.name for board in CATALOGUE.boards}
    assert len(names) == len(CATALOGUE.boards)
    wanted = {f"raspberry-pi-4-{size}gb" for size in (1, 2, 4, 8)}
    wanted |= {f"raspberry-pi-5-{size}gb" for size in (2, 4, 8, 16)}
    wanted |= {f"orange-pi-5-{size}gb" for size in (4, 8, 16, 32)}
    wanted |= {"jetson-orin-nano", "jetson-orin-nano-super", "pixel-8", "iphone-14-a16"}
    wanted |= {"snapdragon-8-gen-2-8gb", "snapdragon-8-gen-3-8gb"}
    wanted |= {"generic-armv8.0", "generic-armv8.2-dotprod", "generic-x86-64-v3", "generic-avx512-vnni"}
    assert wanted <= names


def test_families_share_all_but_memory() -> None:
    """Boards of a family differ in name, title and memory alone."""
    pi4, pi8 = CATALOGUE.get("raspberry-pi-5-4gb"), CATALOGUE.get("raspberry-pi-5-8gb")
    assert (pi4.family, pi4.clusters, pi4.effective_gbps) == (pi8.family, pi8.clusters, pi8.effective_gbps)
    assert (pi4.memory_bytes.value, pi8.memory_bytes.value) == (4 * GIB, 8 * GIB)
    assert (pi4.title, pi8.title) == ("Raspberry Pi 5, 4 GB", "Raspberry Pi 5, 8 GB")


def test_phones_reserve_more_than_boards() -> None:
    """A phone's system keeps several times what a headless board's does."""
    boards = {board.name: board.os_reserve_bytes.value for board in CATALOGUE.boards}
    assert min(boards["pixel-8"], boards["iphone-14-a16"]) > 2.5 * boards["raspberry-pi-5-8gb"]


def test_the_raspberry_pi_5_is_as_published() -> None:
    """Weights of 2.09 GB cannot be read 12 times a second there, and others measured less than its cores can read."""
    board = CATALOGUE.get("raspberry-pi-5-8gb")
    assert 8 < board.bandwidth_gbps.value / 2.094 < 8.5
    assert board.effective_gbps.value / 2.094 < 12
    phi = [speed.decode_tokens_per_s for speed in board.published if speed.model.startswith("Phi-3")]
    assert phi == [3.58]
    assert phi[0] < board.effective_gbps.value / 2.094


def test_an_unknown_name_lists_similar_ones() -> None:
    """A name that no board has is refused with those it may mean."""
    with pytest.raises(ConfigError, match=r"'rasberry-pi-5'; did you mean .*raspberry-pi-5-8gb.*edgephi devices"):
        CATALOGUE.get("rasberry-pi-5")
    with pytest.raises(ConfigError, match=r"did you mean orange-pi-5-4gb"):
        CATALOGUE.get("orange")
    for name in ("#", "5", "x"):
        with pytest.raises(ConfigError, match=rf"'{name}'; `edgephi devices`"):
            CATALOGUE.get(name)


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("pi5", {"raspberry-pi-5", "orange-pi-5"}), ("rpi5", {"raspberry-pi-5"}), ("RPi-4", {"raspberry-pi-4"}),
        ("opi5", {"orange-pi-5"}), ("orin", {"jetson-orin-nano", "jetson-orin-nano-super"}),
        ("8gen3", {"snapdragon-8-gen-3"}), ("pixel8", {"pixel-8"}), ("rasp", {"raspberry-pi-4", "raspberry-pi-5"}),
    ],
)  # fmt: skip
def test_a_short_name_lists_what_it_is_short_for(name: str, families: set[str]) -> None:
    """What people call a board for short is answered with the boards of that name, and no others."""
    with pytest.raises(ConfigError, match="did you mean") as caught:
        CATALOGUE.get(name)
    listed = str(caught.value).partition("did you mean ")[2].partition("?")[0].split(", ")
    assert {re.sub(r"-[0-9]+gb$", "", board) for board in listed} == families


def test_the_documented_example_makes_boards(tmp_path: Path) -> None:
    """The example of docs/devices.md is read as it stands and gives the boards it names."""
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "acme-edge.yaml"
    path.write_text(example)
    catalogue = load_catalogue([path])
    assert [board.name for board in catalogue.boards[-2:]] == ["acme-edge-4gb", "acme-edge-8gb"]
    board = catalogue.get("acme-edge-8gb")
    assert [(cluster.core, cluster.count) for cluster in board.clusters] == [("Cortex-A76", 2), ("Cortex-A55", 6)]
    assert board.effective_gbps.evidence is Evidence.MEASURED
    facts = machine(
        tmp_path / "root",
        board="Acme Edge Mk 2",
        cores=[("Cortex-A76", 2), ("Cortex-A55", 6)],
        total_gib=7.7,
    )
    assert catalogue.match(facts) == board


def test_the_documented_fields_are_those_of_the_file() -> None:
    """The table of fields names exactly the fields a file may have."""
    table = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    evidence = {kind.value for kind in Evidence}
    fields = set(re.findall(r"^(\w+):", GOOD, flags=re.MULTILINE))
    assert set(table) == fields | evidence


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("family: acme", "family: Acme Edge", "own.yaml:1: family: found 'Acme Edge'; expected 1 to 63 lower-case"),
        ("title: Acme\n", "", "own.yaml:1: title: missing; it is required"),
        ("title: Acme", "title: 12", "own.yaml:2: title: found '12'; expected 1 to 500 printable characters"),
        ("title: Acme", "title: [Acme]", "own.yaml:2: title: found a list of 1; expected 1 to 500"),
        ("title: Acme", 'title: "\\e[31m"', "own.yaml:2: title: found '\\x1b[31m'; expected 1 to 500 printable"),
        ("armv8.0", "armv9", "own.yaml:3: isa_level: found 'armv9'; expected one of avx512-vnni, avx-vnni"),
        ("  - Acme Edge", "  - ab", "own.yaml:5: matches[0]: found 'ab'; expected 3 to 100 printable"),
        ("  - core", "  - colour: red\n    core", "own.yaml:7: clusters[0]: unknown field 'colour'; expected one of"),
        ("count: 4", "count: -4", "own.yaml:8: clusters[0].count: found '-4'; expected a whole number from 1 to 1024"),
        ("count: 4", "count: 2.5", "own.yaml:8: clusters[0].count: found '2.5'; expected a whole number"),
        ("count: 4", "count: four", "own.yaml:8: clusters[0].count: found 'four'; expected a whole number"),
        ("count: 4", 'count: "4"', "own.yaml:8: clusters[0].count: found '4'; expected a whole number"),
        ("count: 4", "count:", "own.yaml:8: clusters[0].count: found nothing; expected a whole number"),
        ("value: 1500", "value: 0x5dc", "own.yaml:9: clusters[0].max_mhz.value: found '0x5dc'; expected a number from"),
        ("value: 1500", "value: 1500, unit: MHz", "own.yaml:9: clusters[0].max_mhz: unknown field 'unit'"),
        ("{value: 1500, evidence: assumed, source: a guess}", "1500", "max_mhz: found '1500'; expected fields"),
        ("value: 12.8", "value: 1e9", "own.yaml:10: bandwidth_gbps.value: found '1e9'; expected a number from 0.1 to"),
        ("value: 12.8", "value: 1e999", "own.yaml:10: bandwidth_gbps.value: found '1e999'; expected a number"),
        ("value: 12.8", "value: .nan", "own.yaml:10: bandwidth_gbps.value: found '.nan'; expected a number"),
        ("theoretical", "rumoured", "own.yaml:10: bandwidth_gbps.evidence: found 'rumoured'; expected one of theo"),
        (", source: its parts", "", "own.yaml:10: bandwidth_gbps.source: missing; it is required"),
        ("source: its parts", "source: ''", "own.yaml:10: bandwidth_gbps.source: found nothing; expected 1 to 500"),
        ("value: 5.5", "value: 13", "own.yaml:11: effective_gbps.value: 13 is too much; expected less than band"),
        ("value: 0.8", "value: 80", "own.yaml:13: thermal.sustained_fraction.value: found '80'; expected a number"),
        ("  sustained", "  hot: 1\n  sustained", "own.yaml:13: thermal: unknown field 'hot'; expected one of"),
        ("per_s: 2", "per_s: 0", "own.yaml:17: published[0].decode_tokens_per_s: found '0'; expected a number"),
        ("    source: somewhere\n", "", "own.yaml:15: published[0].source: missing"),
        ("name: acme-4gb", "name: raspberry-pi-5-8gb", "own.yaml:20: variants[0].name: 'raspberry-pi-5-8gb' is taken"),
        ("value: 4,", "value: 1e6,", "own.yaml:21: variants[0].memory_gib.value: found '1e6'; expected a number from"),
        ("value: 0.5", "value: 4", "own.yaml:22: variants[0].os_reserve_gib.value: 4 is too much; expected less than"),
        ("value: 0.5", "value: -1", "own.yaml:22: variants[0].os_reserve_gib.value: found '-1'; expected a number"),
        (GOOD[GOOD.index("variants") :], "variants: []\n", "variants: found a list of 0; expected a list of 1 to 64"),
        (GOOD[GOOD.index("variants") :], "", "own.yaml:1: variants: missing; it is required"),
        ("family", "colour: red\nfamily", "own.yaml:1: the file: unknown field 'colour'; expected one of family,"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_line_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A wrong field is refused with the file, its line, its name, what was found and what is allowed."""
    assert old in GOOD
    assert message in refused(tmp_path, GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "own.yaml:1: the file: found nothing; expected fields"),
        ("- a\n- b\n", "own.yaml:1: the file: found a list of 2; expected fields"),
        ("a: [1, 2", "not YAML: "),
        ("a: 1\n\tb: 2\n", "own.yaml:2: not YAML: found "),
        ("title: a\nfamily: b\ntitle: c\n", "own.yaml:3: found the field 'title' again; line 1 has it already"),
        ("a: 1\n---\nb: 2\n", "own.yaml:2: found a second document; expected one"),
        ("a: &x 1\nb: *x\n", "own.yaml:1: found an anchor or alias; write the value out"),
        ("a: *x\n", "own.yaml:1: found an anchor or alias; write the value out"),
        ("a: !!python/object/apply:os.system [id]\n", "own.yaml:1: found the tag 'tag:yaml.org,2002:python/"),
        ("? [a, b]\n: c\n", "own.yaml:1: found a key that is not text"),
        ("a: " + "[" * 500, "own.yaml:1: found nested deeper than 8 levels"),
        ("a: " + "{b: " * 9 + "1" + "}" * 9, "own.yaml:1: found nested deeper than 8 levels"),
        ("a: x\x00y\n", "own.yaml: not YAML:"),
        (b"a: \xff\xfe\n", "own.yaml: not UTF-8 text, at byte 3"),
        ("#" * 70_000, "own.yaml: larger than 65536 bytes"),
    ],
    ids=range(15),
)
def test_files_that_are_no_plain_yaml_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    """Broken, repeated, aliased, tagged, deep, binary and huge files are refused before they cost anything."""
    assert message in refused(tmp_path, content)


def test_the_slower_parser_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML without its C part gives the same boards and refuses with the same line."""
    monkeypatch.setattr(yamlfields, "_LOADER", yaml.SafeLoader)
    assert load_catalogue().boards == CATALOGUE.boards
    assert "own.yaml:8: clusters[0].count: found '-4'" in refused(tmp_path, GOOD.replace("count: 4", "count: -4"))
    assert "own.yaml:1: found nested deeper" in refused(tmp_path, "a: " + "[" * 30_000)
    assert "own.yaml: not YAML:" in refused(tmp_path, "a: x\x00y\n")
    assert "own.yaml:1: found the tag" in refused(tmp_path, "a: !!int 1\n")


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """A file whose aliases would grow to a thousand million texts is refused at its first anchor."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "own.yaml:1: found an anchor" in refused(tmp_path, "\n".join(lines))


def test_names_are_taken_once_across_and_within_files(tmp_path: Path) -> None:
    """A name that another file or another variant has is refused with the line and who has it."""
    variant = GOOD[GOOD.index("  - name") :]
    assert "own.yaml:23: variants[1].name: 'acme-4gb' is taken by own.yaml" in refused(tmp_path, GOOD + variant)
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(GOOD)
    second.write_text(GOOD)
    with pytest.raises(ConfigError, match=r"second\.yaml:20: variants\[0\]\.name: 'acme-4gb' is taken by .*first"):
        load_catalogue([first, second])
    assert load_catalogue([first, first]).get("acme-4gb").title == "Acme, 4 GB"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is refused with its name and the reason."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_catalogue([tmp_path / "nowhere.yaml"])
    with pytest.raises(ConfigError, match="Is a directory"):
        load_catalogue([tmp_path])


def test_text_stays_text_and_may_be_folded(tmp_path: Path) -> None:
    """Words that YAML takes for truth values are text, and a folded source is one line."""
    path = tmp_path / "own.yaml"
    folded = GOOD.replace("source: its parts}", 'source: "its\n  parts"}').replace("family: acme", "family: no")
    path.write_text(folded)
    board = load_catalogue([path]).get("acme-4gb")
    assert (board.family, board.bandwidth_gbps.source) == ("no", "its parts")
    assert board.memory_bytes == Figure(4 * GIB, Evidence.PUBLISHED, "as sold")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """However a file is damaged, it is refused with its name, or gives boards within all bounds."""
    at = data.draw(st.integers(0, len(GOOD) - 1))
    cut = data.draw(st.integers(0, 20))
    put = data.draw(st.text(st.sampled_from("{}[]:,-#&*!|>'\"\n\t 0123456789.eE+-abcé\\%@`"), max_size=12))
    path = tmp_path / "damaged.yaml"
    path.write_text(GOOD[:at] + put + GOOD[at + cut :], encoding="utf-8")
    try:
        board = load_catalogue([path]).boards[-1]
    except ConfigError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - both outcomes are right
        return
    assert 0 < board.effective_gbps.value <= board.bandwidth_gbps.value
    assert 0 <= board.os_reserve_bytes.value < board.memory_bytes.value


JETSON = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
PI5: list[tuple[str | None, int]] = [("Cortex-A76", 4)]
TENSOR_G3: list[tuple[str | None, int]] = [("Cortex-X3", 1), ("Cortex-A715", 4), ("Cortex-A510", 4)]


@pytest.mark.parametrize(
    ("board", "cores", "total_gib", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", PI5, 7.87, "raspberry-pi-5-8gb"),
        ("Raspberry Pi 5 Model B Rev 1.1", PI5, 15.84, "raspberry-pi-5-16gb"),
        ("Raspberry Pi 5 Model B Rev 1.0", PI5, 3.95, "raspberry-pi-5-4gb"),
        ("Raspberry Pi 500 Rev 1.0", PI5, 7.86, "raspberry-pi-5-8gb"),
        ("Raspberry Pi 4 Model B Rev 1.4", [("Cortex-A72", 4)], 7.64, "raspberry-pi-4-8gb"),
        ("Raspberry Pi 4 Model B Rev 1.4", [("Cortex-A72", 4)], 1.79, "raspberry-pi-4-2gb"),
        ("Orange Pi 5 Plus", [("Cortex-A76", 4), ("Cortex-A55", 4)], 15.6, "orange-pi-5-16gb"),
        ("Radxa ROCK 5B", [("Cortex-A76", 4), ("Cortex-A55", 4)], 7.7, "orange-pi-5-8gb"),
        ("NVIDIA Orin Nano Developer Kit", [("Cortex-A78AE", 6)], 7.4, "jetson-orin-nano"),
        (JETSON, [(None, 6)], 7.4, "jetson-orin-nano"),
        (f"{JETSON} Super", [(None, 6)], 7.4, "jetson-orin-nano-super"),
        (None, TENSOR_G3, 7.5, "pixel-8"),
        (None, [("Cortex-X4", 1), ("Cortex-A720", 5), ("Cortex-A520", 2)], 11.1, "snapdragon-8-gen-3-12gb"),
        ("RASPBERRY PI 5 MODEL B", PI5, 7.87, "raspberry-pi-5-8gb"),
        ("Raspberry Pi 5 Model Black", PI5, 7.87, None),
        ("Raspberry Pi 5 Model B Rev 1.0", [("Cortex-A53", 4)], 7.87, None),
        ("Raspberry Pi 5 Model B Rev 1.0", PI5, 5.5, None),
        ("Raspberry Pi 5 Model B Rev 1.0", PI5, 64.0, None),
        ("Raspberry Pi 5 Model B Rev 1.0", PI5, None, None),
        ("NVIDIA Orin Nano Developer Kit", [("Cortex-A78AE", 6)], None, "jetson-orin-nano"),
        ("Some other board", PI5, 7.87, None),
        (None, PI5, 7.87, None),
        (None, [*TENSOR_G3, ("Cortex-A55", 1)], 7.5, None),
        (None, [(None, 4)], 3.9, None),
    ],
)  # fmt: skip
def test_machines_are_recognised(
    tmp_path: Path,
    board: str | None,
    cores: list[tuple[str | None, int]],
    total_gib: float | None,
    expected: str | None,
) -> None:
    """A machine is the board whose name, cores and memory it has; what does not fit in all of them is none."""
    assert name_of(CATALOGUE.match(machine(tmp_path, board=board, cores=cores, total_gib=total_gib))) == expected


def test_a_users_board_wins_over_a_shipped_one(tmp_path: Path) -> None:
    """Where a user's file describes the same machine, it is taken; PC firmware names count as well."""
    own = tmp_path / "own.yaml"
    own.write_text(GOOD.replace("Acme Edge", "Raspberry Pi 4 Model B"))
    facts = machine(tmp_path, board="Raspberry Pi 4 Model B Rev 1.4", cores=[("Cortex-A72", 4)], total_gib=3.8)
    assert name_of(CATALOGUE.match(facts)) == "raspberry-pi-4-4gb"
    assert name_of(load_catalogue([own]).match(facts)) == "acme-4gb"
    own.write_text(GOOD)
    pc = machine(tmp_path / "pc", board="Acme Edge 3000", cores=[(None, 4)], total_gib=3.8, dmi=True)
    assert name_of(load_catalogue([own]).match(pc)) == "acme-4gb"


def test_an_empty_catalogue_matches_nothing(tmp_path: Path) -> None:
    """Without boards no machine is recognised, and a machine that says nothing is none of them."""
    facts = probe(tmp_path, arch="aarch64")
    assert CATALOGUE.match(facts) is None
    assert Catalogue(()).match(facts) is None


def test_each_shipped_file_is_one_family() -> None:
    """A shipped file is named after the family it describes."""
    families = {board.family for board in CATALOGUE.boards}
    assert {path.stem for path in shipped_files()} == families
