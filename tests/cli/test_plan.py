from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from tests.command_line import assert_is_command

from edgephi.cli.curve import Curve, CurvePoint, curve_of
from edgephi.cli.failures import EdgephiGroup
from edgephi.cli.plan import plan
from edgephi.cli.plan_table import headline, next_commands, plan_lines
from edgephi.cli.planning import PlanningOptions, plan_for
from edgephi.cli.plot import ASCII, UNICODE, glyphs_for, plot_lines, write_plot
from edgephi.errors import ConfigError
from edgephi.profile.plan import KvDtype, PlanKind
from edgephi.profile.planning.planner import Prefer

Run = Callable[..., Result]

JSON_KEYS = {
    "feasible", "device", "model", "context_tokens", "batch", "prefill_chunk_tokens", "kv_dtype", "threads",
    "predicted_tokens_per_s", "memory_bytes", "binding_limit", "remedies",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_boards_or_calibrations_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEPHI_DEVICE_FILES", raising=False)


@pytest.fixture
def run() -> Run:
    """Return a function that runs ``edgephi plan`` in this process."""

    @click.group(cls=EdgephiGroup)
    def root() -> None: ...

    root.add_command(plan)

    def invoke(*arguments: str | Path) -> Result:
        return CliRunner().invoke(root, ["plan", *map(str, arguments)], env={"COLUMNS": "100", "LC_ALL": "C.UTF-8"})

    return invoke


def _json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def test_a_pi_5_cannot_keep_the_floor(run: Run) -> None:
    """For a Raspberry Pi 5 the plan is infeasible by speed, near the published figures and below 8.3 on paper."""
    found = _json(run("--device", "raspberry-pi-5-8gb", "--json"))
    assert (found["feasible"], found["binding_limit"]) == (False, "speed")
    assert 3.5 < found["predicted_tokens_per_s"]["empty"] < 5.6
    assert found["alone_tokens_per_s"]["empty_range"][1] == pytest.approx(8.2, abs=0.1)
    assert found["remedies"]


def test_an_orin_nano_super_keeps_the_floor(run: Run) -> None:
    """For a Jetson Orin Nano Super the plan is feasible, at 12 tok/s with a full context or more."""
    found = _json(run("--device", "jetson-orin-nano-super", "--json"))
    assert found["feasible"] is True
    assert found["predicted_tokens_per_s"]["full"] >= 12


def test_json_has_the_documented_keys(run: Run) -> None:
    """JSON has every documented key, its items add up to the total, and the curve reaches the model's context."""
    found = _json(run("--device", "raspberry-pi-4-8gb", "--floor", "1", "--json"))
    assert set(found) >= JSON_KEYS
    memory = found["memory_bytes"]
    assert memory["total"] == sum(memory[name] for name in ("weights", "kv", "workspace", "runtime", "margin"))
    assert memory["weights"] == 2_150_043_904
    assert found["curve"][-1]["context_tokens"] == 4096
    chosen = next(point for point in found["curve"] if point["context_tokens"] == found["context_tokens"])
    assert chosen["memory_bytes"] == memory["total"]
    assert chosen["tokens_per_s"] == found["predicted_tokens_per_s"]["full"]


def test_infeasible_is_a_failure_only_when_asked(run: Run) -> None:
    """An infeasible plan exits with 0 and with --check with 1; a feasible one with 0 either way."""
    slow = ("--device", "raspberry-pi-4-4gb")
    assert [run(*slow).exit_code, run(*slow, "--check").exit_code] == [0, 1]
    assert run(*slow, "--floor", "1", "--check").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "raspberry-pi-5"), ("raspberry-pi-5", "raspberry-pi-5-8gb", "edgephi devices")),
        (("--context", "9000"), ("9000", "4096", "ask for less")),
        (("--context", "0"), ("context is 0", "4096")),
        (("--batch", "100000"), ("100000", "256", "queue")),
        (("--floor", "0"), ("0 tok/s", "above 0")),
        (("--floor", "-1"), ("-1 tok/s", "above 0")),
        (("--floor", "nan"), ("nan", "above 0")),
        (("--floor", "inf"), ("inf", "10000")),
        (("--memory", "4"), ("4 bytes", "4GiB")),
        (("--memory", "much"), ("'much'", "4GiB")),
        (("--memory", "16GiB", "--device", "raspberry-pi-5-8gb"), ("16.00 GiB", "8.00 GiB", "larger board")),
        (("--threads", "99", "--device", "raspberry-pi-5-8gb"), ("99", "4 cores")),
        (("--threads", "100000"), ("100000", "cores")),
        (("--quantization", "q9"), ("'q9'", "q4f16_1")),
        (("--model", "nothing"), ("'nothing'", "phi3-mini-4k")),
        (("--plot", "plan.pdf"), ("plan.pdf", ".svg or .png")),
        (("--plot", "no-such-folder/plan.svg"), ("no-such-folder", "does not exist")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and str(value[0]).startswith("--") else "",
)
def test_what_cannot_be_is_refused(run: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """A wrong option ends with 1 and one line that has the value, the limit and what to do."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("device", ["auto", "raspberry-pi-5-2gb", "raspberry-pi-5-16gb", "iphone-14-a16", "pixel-8"])
@pytest.mark.parametrize("width", [60, 79, 80, 100])
def test_no_line_is_wider_than_the_terminal(device: str, width: int) -> None:
    """The text fits the terminal, but for commands, which must stay whole."""
    for options in (
        PlanningOptions(device=device),
        PlanningOptions(device=device, floor_tokens_per_s=1, prefer=Prefer.BATCH, kv_dtype=KvDtype.FLOAT16),
        PlanningOptions(device=device, model="phi3-tiny"),
    ):
        planned = plan_for(options)
        lines = [click.unstyle(line) for line in plan_lines(planned, width=width, glyphs=UNICODE)]
        commands = lines[-len(next_commands(planned)) :]
        assert max(map(len, lines[: -len(commands)])) <= width
        assert all("edgephi " in line for line in commands)


def test_a_person_finds_everything(run: Run) -> None:
    """The text has the choice, speeds with their range, memory by item, where numbers come from, and what to do."""
    text = run("--device", "raspberry-pi-5-8gb").stdout
    for words in (
        "cannot keep 12 tok/s",
        "Keys and values int8",
        "Full context",
        "First token",
        "floor 12",
        "weights",
        "kept free",
        "left over",
        "Missing: ",
        "Numbers: estimated from the catalogue",
        "3.58 tok/s",
        "What would help",
        "Next: edgephi",
    ):
        assert words in text, words
    assert "\x1b" not in text


def test_headlines_answer_in_one_sentence() -> None:
    """The first sentence says whether the floor is kept; otherwise, the speed reached or the memory that is short."""
    slow = plan_for(PlanningOptions(device="raspberry-pi-5-8gb"))
    assert headline(slow).startswith("raspberry-pi-5-8gb cannot keep 12 tok/s with phi3-mini-4k: about ")
    assert "(between " in headline(slow)
    small = plan_for(PlanningOptions(device="raspberry-pi-4-1gb"))
    memory = small.plan.memory
    assert memory.budget_bytes is not None
    short = (memory.total_bytes - memory.budget_bytes) / 1e9
    assert headline(small).endswith(f"{short:.2f} GB short.")
    easy = plan_for(PlanningOptions(device="raspberry-pi-5-8gb", floor_tokens_per_s=1))
    assert headline(easy).startswith("raspberry-pi-5-8gb keeps 1 tok/s with phi3-mini-4k: 4096 tokens of context, ")
    unsure = plan_for(PlanningOptions(device="raspberry-pi-5-8gb", floor_tokens_per_s=4))
    assert "should keep 4 tok/s" in headline(unsure)


def test_the_next_command_fits_the_plan(tiny: Path) -> None:
    """What to type next gets the model, measures, serves; with another floor or board where the plan is infeasible."""
    here = next_commands(plan_for(PlanningOptions(model=str(tiny))))
    assert here == (
        f"edgephi calibrate --model {tiny}     # measures what is estimated here",
        f"edgephi serve --model {tiny}",
    )
    absent = next_commands(plan_for(PlanningOptions(floor_tokens_per_s=0.1, context_tokens=1024)))
    assert absent[0] == "edgephi model pull phi3-mini-4k"
    assert absent[-1] == "edgephi serve --model phi3-mini-4k --floor 0.1 --context 1024"
    converted = next_commands(plan_for(PlanningOptions(quantization="q3f16_g32")))
    assert converted[0] == "edgephi model convert CHECKPOINT DIR --quantization q3f16_g32"
    assert converted[-1].startswith("edgephi serve --model DIR")
    (larger,) = next_commands(plan_for(PlanningOptions(device="raspberry-pi-5-2gb")))
    assert larger == "edgephi plan --model phi3-mini-4k --device raspberry-pi-5-4gb"
    made = next_commands(plan_for(PlanningOptions(model="phi3-small", floor_tokens_per_s=0.1)))
    assert made[0] == "edgephi model synth phi3-small DIR --quantization q4f16_1"
    for command in (*here, *absent, *converted, larger, *made):
        assert_is_command(command.removeprefix("edgephi "))


def test_the_command_that_is_proposed_is_feasible() -> None:
    """Where a floor cannot be kept, the floor that the next command names can."""
    planned = plan_for(PlanningOptions(device="raspberry-pi-5-8gb"))
    (command,) = next_commands(planned)
    floor = float(command.rpartition("--floor ")[2])
    assert plan_for(PlanningOptions(device="raspberry-pi-5-8gb", floor_tokens_per_s=floor)).plan.feasible


CURVE = Curve(
    title="a model on a device",
    points=tuple(
        CurvePoint(
            context_tokens=context,
            tokens_per_s=speed,
            low_tokens_per_s=speed / 2,
            high_tokens_per_s=speed * 2,
            memory_bytes=memory,
        )
        for context, speed, memory in ((0, 10.0, 10**9), (512, 8.0, 2 * 10**9), (1024, 5.0, 4 * 10**9))
    ),
    chosen_tokens=512,
    floor_tokens_per_s=8.0,
    budget_bytes=3 * 10**9,
)


def test_bars_are_to_scale_and_mark_floor_and_budget() -> None:
    """A bar is as long as its value, the floor and the budget are over each, and the chosen context is marked."""
    header, *rows = (click.unstyle(line) for line in plot_lines(CURVE, width=75, glyphs=ASCII))
    assert ("floor 8" in header, "budget 3.00" in header) == (True, True)
    # 75 columns leave 40 for bars: 24 for up to 20 tok/s, 16 for up to 4 GB.
    assert rows[0] == "        0     10.0     ######===|==------------   1.00   ####       |"
    assert rows[1] == ">     512      8.0     #####====|---------        2.00   ########   |"
    assert rows[2] == "     1024      5.0     ###===---|--               4.00   ###########|####"


def test_glyphs_follow_the_terminal() -> None:
    """A terminal that is not UTF-8, or a locale that asks for plain text, gets ASCII."""
    assert glyphs_for("utf-8", {}) is UNICODE
    assert glyphs_for("UTF8", {"LANG": "de_DE.UTF-8"}) is UNICODE
    assert glyphs_for("iso8859-1", {}) is ASCII
    assert glyphs_for("utf-8", {"LC_ALL": "C", "LANG": "de_DE.UTF-8"}) is ASCII
    assert glyphs_for(None, {}) is ASCII
    planned = plan_for(PlanningOptions(device="raspberry-pi-5-8gb"))
    assert all(line.isascii() for line in plan_lines(planned, width=80, glyphs=ASCII))


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_figure_is_written(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure needs no display, names floor and budget, and is the same for the same plan."""
    pytest.importorskip("matplotlib", reason="the optional extra plot")
    monkeypatch.delenv("DISPLAY", raising=False)
    curve = curve_of(plan_for(PlanningOptions(device="raspberry-pi-5-8gb")))
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_plot(curve, first)
    write_plot(curve, second)
    assert first.read_bytes() == second.read_bytes()
    if suffix == ".svg":
        text = first.read_text()
        assert all(word in text for word in ("floor 12", "budget 7.54 GB", curve.title, "tok/s of each request"))
    else:
        assert first.read_bytes().startswith(b"\x89PNG")


def test_a_figure_without_matplotlib_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Matplotlib --plot is refused before anything is planned, with the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("--plot", tmp_path / "plan.svg")
    assert result.exit_code == 1
    assert "pip install 'edgephi[plot]'" in result.stderr
    with pytest.raises(ConfigError):
        write_plot(CURVE, tmp_path / "plan.svg")


def test_flags_reach_the_plan(run: Run) -> None:
    """Each flag changes what is planned; ``auto`` is as if it was left out."""
    arguments = ("--device", "raspberry-pi-5-8gb", "--floor", "1", "--json")
    found = _json(run(*arguments, "--kv-dtype", "float16", "--threads", "2", "--context", "512", "--batch", "2"))
    wanted = {"kv_dtype": KvDtype.FLOAT16.value, "threads": 2, "context_tokens": 512, "batch": 2}
    assert {key: found[key] for key in wanted} == wanted
    assert found["kind"] == PlanKind.CATALOGUE.value
    auto = ("--kv-dtype", "auto", "--threads", "auto", "--quantization", "auto", "--device-file")
    assert _json(run(*arguments, *auto[:-1])) == _json(run(*arguments))
    limited = _json(run(*arguments, "--memory", "2.5GiB"))
    assert limited["memory_bytes"]["budget"] == 5 << 29
    assert limited["memory_bytes"]["total"] <= 5 << 29
