from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgephi.cli.calibrate import calibrate, report_lines, verdict
from edgephi.profile.calibration import Calibration, Conditions, MeasuredStep
from edgephi.profile.plan import KvDtype
from edgephi.profile.speed import StepTimes

Calibrate = Callable[..., Result]


def made(rows: tuple[tuple[int, float], ...], *, kv_s_per_byte: float = 3e-11) -> Calibration:
    """Return a calibration of Phi-3-mini with these durations, measured up to 4096 tokens."""
    kinds = [(1, 1, 0), (1, 1, 1024), (1, 1, 4095), (4, 1, 0), (1, 64, 0)]
    return Calibration(
        device_key="d" * 64,
        build_key="b" * 64,
        model_key="a" * 64,
        measured_at="2026-11-24T10:00:00.000000Z",
        device="a board",
        model="phi3-mini-4k",
        quantization="q4f16_1",
        level="armv8.2-dotprod",
        kv_dtype=KvDtype.INT8,
        step_weight_bytes=2_100_000_000,
        kv_bytes_per_token=200_704,
        requested_threads=None,
        tvm_version="0.27.0",
        edgephi_version="0.1.0",
        bandwidth=((1, 7e9), (4, 14e9)),
        steps=tuple(
            MeasuredStep(sequences=sequences, rows=rows, context_tokens=context, seconds=0.1, samples=number + 2)
            for number, (sequences, rows, context) in enumerate(kinds)
        ),
        times=StepTimes(threads=4, rows=rows, kv_s_per_byte=kv_s_per_byte, prefill_s_per_pair=1e-6),
        conditions=Conditions(cpu_share=1.0, other_cores=0.0, bandwidth_spread=0.0),
        load_s=1.5,
        total_s=19.0,
    )


def test_the_report_names_every_figure() -> None:
    """The report has the bandwidth by threads, decoding by streams and context, prompts and the verdict."""
    lines = list(report_lines(made(((1, 0.05), (4, 0.06), (64, 0.4)))))
    text = "\n".join(lines)
    assert lines[0] == "phi3-mini-4k, q4f16_1, int8 keys and values on a board"
    assert lines[1].startswith("armv8.2-dotprod, 4 threads, TVM 0.27.0; 5 kinds of steps timed 2 to 6 times in 19.0 s")
    assert [line.split() for line in lines if line.startswith("  1 thread ")] == [["1", "thread", "7.0", "#" * 15]]
    assert [line.split() for line in lines if line.startswith("  4 threads ")] == [["4", "threads", "14.0", "#" * 30]]
    header = next(line for line in lines if line.split()[:2] == ["0", "1024"])
    assert header.split() == ["0", "1024", "4096"]
    one, four = (line for line in lines if " stream" in line and line.startswith("  "))
    assert [float(cell) for cell in CliText(one).cells] == [20.0, 17.8, 13.4]
    assert [float(cell) for cell in CliText(four).cells] == [16.7, 11.8, 6.3]
    assert "  chunks of 64           160.0" in text


class CliText:
    """Numbers of a line behind its label, without colours."""

    def __init__(self, line: str) -> None:
        import click

        self.cells = click.unstyle(line).split()[2:]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            ((1, 0.2), (8, 0.3)),
            "12 tok/s: out of reach here. One stream decodes 5.0 tok/s with an empty context, 4.5 behind 4096 tokens.",
        ),
        (
            ((1, 0.05), (4, 0.06), (8, 0.09)),
            "12 tok/s for each stream: any context up to the 4096 tokens that were measured with 1 stream, up to 2491 "
            "tokens with 2 streams, up to 1476 tokens with 3 streams, up to 968 tokens with 4 streams.",
        ),
        (
            ((1, 0.01), (8, 0.011)),
            "12 tok/s for each stream: any context up to the 4096 tokens that were measured with up to 2 streams, up "
            "to 4043 tokens with 3 streams, up to 3027 tokens with 4 streams, up to 1501 tokens with 8 streams.",
        ),
        (((1, 0.083), (8, 0.09)), "12 tok/s for each stream: up to 55 tokens with 1 stream."),
    ],
    ids=["out of reach", "some", "most", "hardly"],
)
def test_the_verdict_tells_how_far_the_floor_is_kept(rows: tuple[tuple[int, float], ...], text: str) -> None:
    """The floor's reach is told for each number of streams, or that it is out of reach, with the speed there is."""
    assert verdict(made(rows)) == text


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibrate:
    """Return a function that calibrates the tiny model, keeping results in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_command(*arguments: str) -> Result:
        result = CliRunner().invoke(
            calibrate, ["--model", str(tiny), "--time-budget", "1.5", *arguments], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result

    return run_command


def _stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/edgephi/calibration").rglob("*.json"))


@pytest.mark.tvm
def test_a_calibration_is_printed_and_kept(run: Calibrate, tmp_path: Path) -> None:
    """The table ends with where the result was stored; JSON is the whole of it, with warnings."""
    text = run().stdout
    (path,) = _stored(tmp_path)
    assert text.endswith(f"Stored in {path}\n")
    report = json.loads(run("--json").stdout)
    first, second = _stored(tmp_path)
    assert report["path"] == str(second if first == path else first)
    assert isinstance(report.pop("warnings"), list)
    del report["path"]
    calibration = msgspec.convert(report, Calibration)
    assert (calibration.model, calibration.quantization) == ("tiny", "q4f16_1")


@pytest.mark.tvm
def test_a_speed_that_was_lost_is_reported(run: Calibrate, tmp_path: Path) -> None:
    """Beside an earlier result of another build, ten times as fast, every figure is a warning, also the next time."""
    run()
    (path,) = _stored(tmp_path)
    file: dict[str, Any] = json.loads(path.read_text())
    calibration = msgspec.convert(file["calibration"], Calibration)
    times = dataclasses.replace(
        calibration.times,
        rows=tuple((rows, seconds / 10) for rows, seconds in calibration.times.rows),
        bandwidth_bytes_per_s=10 * (calibration.times.bandwidth_bytes_per_s or 0),
    )
    quiet = dataclasses.replace(calibration.conditions, noise=())
    faster = dataclasses.replace(calibration, times=times, build_key="0" * 64, conditions=quiet)
    path.write_text(json.dumps({**file, "calibration": msgspec.to_builtins(faster)}))
    for _ in range(2):
        slower = [text for text in json.loads(run("--json").stdout)["warnings"] if "times slower" in text]
        assert [text.split(" is ")[0] for text in slower] == [
            "decoding with an empty context",
            "prefill in chunks of 256",
            "reading memory",
        ]
        assert all("build 00000000" in text for text in slower)


@pytest.mark.tvm
def test_a_result_that_cannot_be_kept_is_still_printed(run: Calibrate, tmp_path: Path) -> None:
    """Where the cache cannot be written the figures are printed, with a warning that names the folder."""
    (tmp_path / "cache").write_text("")
    result = run()
    assert "Decoding" in result.stdout
    assert "Stored" not in result.stdout
    assert "not stored: " in result.stderr
    assert "cannot be written" in result.stderr


def test_a_budget_too_small_is_a_wrong_command_line() -> None:
    """A budget below a second is refused with its bound."""
    result = CliRunner().invoke(calibrate, ["--time-budget", "0.2"])
    assert result.exit_code == 2
    assert "--time-budget" in result.stderr
