"""A short soak of a real server process, and the server that leaks, which it must find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.soak.watch import NOISE_BYTES, growth

ROOT = Path(__file__).parents[2]
_LIMIT_S = 150.0


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    """Run a soak of 2,000 calls or so."""
    command = [sys.executable, "-m", "tests.soak", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)


def test_every_end_is_explained_and_nothing_grows() -> None:
    """After 2,000 random calls and 200 new connections no end is unexplained and the server is as it was before."""
    done = soak("--rpcs", "2000", "--channels", "200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2200 calls" in done.stdout
    assert "0 unexplained" in done.stdout


def test_a_server_that_leaks_is_found() -> None:
    """The negative control: memory, descriptors, threads, tasks and objects that are kept are each complained of."""
    done = soak("--rpcs", "1500", "--channels", "100", "--settle", "2", "--leak")
    assert done.returncode == 1, done.stdout + done.stderr
    complaints = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    for word in ("memory of the front grows", "descriptors of the front", "threads of the front", "tasks", "objects"):
        assert any(word in line for line in complaints), (word, done.stdout)
    assert not any("engine" in line for line in complaints), complaints


@pytest.mark.parametrize("bytes_per_call", [0, 200], ids=["steady", "leak"])
def test_memory_is_fitted_beside_peaks_and_a_warm_up(bytes_per_call: int) -> None:
    """The growth of a warm-up and peaks of tens of megabytes are no leak, and hide none."""
    points = []
    for step in range(400):
        warm_up = min(step, 100) << 18
        peak = (64 << 20) if step % 3 else 0
        points.append((step * 250, (80 << 20) + warm_up + peak + bytes_per_call * step * 250))
    grown = growth(points)
    assert grown.bytes_per_call == pytest.approx(bytes_per_call, abs=1)
    assert grown.is_leak is (bytes_per_call > 0)
    assert (grown.total_bytes > NOISE_BYTES) is grown.is_leak
