from __future__ import annotations

import pytest
from tests.bench.report import Row, advantage, best, medians_table, ratios_table

RATE = Row(case="decode", title="decode, tok/s", is_rate=True)
TIME = Row(case="load", title="load, s", is_rate=False)
SAMPLES = {
    "decode": {
        "edgephi int8": [30.0, 20.0, 32.0],
        "llama.cpp f16": [15.0, 10.0, 16.0],
        "llama.cpp fa": [20.0, 5.0, 8.0],
        "openvino bf16": [10.0, 8.0, 10.0],
    },
    "load": {"edgephi int8": [0.5], "llama.cpp f16": [3.0], "openvino bf16": [2.0]},
}


def test_a_busy_round_slows_both_and_leaves_the_advantage() -> None:
    """The advantage is taken within rounds, so a machine that is slower in one of them does not change it."""
    assert advantage([30, 15, 30], [20, 10, 20], is_rate=True) == 1.5


@pytest.mark.parametrize(("is_rate", "expected"), [(True, 0.5), (False, 2.0)])
def test_above_one_is_better_for_us(is_rate: bool, expected: float) -> None:
    """Half the number is half as good for a rate and twice as good for a time."""
    assert advantage([1.0], [2.0], is_rate=is_rate) == expected


@pytest.mark.parametrize(("is_rate", "expected"), [(True, "b"), (False, "a")])
def test_the_best_engine_is_judged_by_its_median(is_rate: bool, expected: str) -> None:
    """One lucky sample does not make an engine the best."""
    assert best({"a": [1.0, 1.0, 9.0], "b": [2.0, 2.0, 2.0]}, is_rate=is_rate) == expected


def test_nothing_is_best_of_nothing() -> None:
    """Without peers there is no best one."""
    assert best({}, is_rate=True) is None


def test_each_family_is_represented_by_its_best_engine() -> None:
    """Ratios are against the best settings of each peer, and the best peer of all is named."""
    lines = ratios_table([RATE, TIME], SAMPLES).splitlines()

    assert lines[0] == "|  |  | llama.cpp | openvino | best peer |"
    assert lines[2] == "| decode, tok/s | edgephi int8 | 2.00 | 3.00 | 2.00 (llama.cpp f16) |"
    assert lines[3] == "| load, s | edgephi int8 | 6.00 | 4.00 | 4.00 (openvino bf16) |"


def test_a_case_without_samples_has_no_line() -> None:
    """Tables of a partial run hold what was measured; an engine that was left out has an empty cell."""
    lines = medians_table(
        [RATE, TIME], {"load": SAMPLES["load"], "decode": {"edgephi int8": [30.0, 20.0]}}
    ).splitlines()

    assert lines[2] == "| decode, tok/s | 25 (20 to 30) |  |  |"
    assert lines[3] == "| load, s | 0.5 | 3 | 2 |"
    assert len(medians_table([RATE], {}).splitlines()) == 2
