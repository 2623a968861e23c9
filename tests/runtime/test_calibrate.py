"""Calibrating: what is timed on fast and slow machines, and the real thing on a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgephi.engine.backend import BackendSpec, F32Array, ForwardBatch
from edgephi.errors import ConfigError
from edgephi.profile.calibration import Calibration, find_calibration, save_calibration
from edgephi.profile.fit import fit_step_times
from edgephi.profile.plan import KvDtype
from edgephi.profile.speed import StepTimes
from edgephi.runtime import LoadedModel, RuntimeOptions
from edgephi.runtime.calibrate import (
    _busy_s,
    build_key_of,
    calibrate_loaded,
    calibrate_model,
    judge_conditions,
)
from edgephi.runtime.fake import FakeBackend
from edgephi.runtime.step_timing import StepKind, Timings, make_batch, time_steps

Load = Callable[..., LoadedModel]

SPEC = BackendSpec(vocab_size=64, page_size=16, num_pages=256, max_batch_tokens=256, max_context_tokens=4096)
KV_BYTES_PER_TOKEN = 200_704
WEIGHT_BYTES = 2_000_000_000
LAPTOP = StepTimes(
    threads=2,
    rows=((1, 0.043), (2, 0.045), (8, 0.06), (16, 0.095), (256, 1.3)),
    kv_s_per_byte=3e-11,
    prefill_s_per_pair=7e-7,
    bandwidth_bytes_per_s=50e9,
)
PI_5 = StepTimes(
    threads=4,
    rows=((1, 0.2), (2, 0.25), (8, 0.5), (16, 1.0), (256, 16.0)),
    kv_s_per_byte=1.2e-10,
    prefill_s_per_pair=5e-6,
    bandwidth_bytes_per_s=12e9,
)
PI_4 = StepTimes(
    threads=4,
    rows=((1, 0.7), (2, 1.0), (8, 3.0), (16, 6.0), (256, 96.0)),
    kv_s_per_byte=5e-10,
    prefill_s_per_pair=2e-5,
    bandwidth_bytes_per_s=4e9,
)


class SimulatedBoard:
    """A machine whose clock goes on by what its steps take: boards that nobody has here, in no time."""

    spec = SPEC

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self.now = 0.0
        self.cpu_s = 0.0
        self.threads = 0
        self.is_filled = False
        self._check = FakeBackend(
            vocab_size=64, page_size=16, num_pages=256, max_batch_tokens=256, max_context_tokens=4096, script=(1,)
        )

    def forward(self, batch: ForwardBatch) -> F32Array:
        """Take the time a step takes; refuse a batch that contradicts itself."""
        assert self.threads == self.times.threads
        logits = self._check.forward(batch) if self.is_filled else np.zeros((len(batch.logit_rows), 64), np.float32)
        num_rows, sequences = len(batch.tokens), len(batch.kv_len)
        before = int(batch.positions[0])
        pairs = num_rows * self.times.seen_tokens(before)
        per_pair = self.times.prefill_s_per_pair
        if num_rows == sequences:
            per_pair = KV_BYTES_PER_TOKEN * self.times.kv_s_per_byte
        self._go_on(self.times.rows_s(num_rows) + pairs * per_pair)
        return logits

    def read_weights(self) -> int:
        """Take the time reading takes: threads share the bandwidth equally."""
        assert self.times.bandwidth_bytes_per_s is not None
        self._go_on(WEIGHT_BYTES / (self.times.bandwidth_bytes_per_s * self.threads / self.times.threads))
        return WEIGHT_BYTES

    def use_threads(self, count: int) -> None:
        """Compute with so many."""
        self.threads = count

    def fill_pages(self) -> None:
        """Let every slot have content."""
        pages = np.arange(256, dtype=np.int32)
        for start in range(0, 4096, 256):
            kind = StepKind(1, 256, start)
            assert make_batch(kind, SPEC).block_table[0].tolist() == pages[: (start + 256) // 16].tolist()
            self._check.forward(make_batch(kind, SPEC))
        self.is_filled = True

    def _go_on(self, seconds: float) -> None:
        self.now += seconds
        self.cpu_s += seconds * self.threads


def _time(board: SimulatedBoard, budget_s: float) -> Timings:
    return time_steps(
        board,
        threads=board.times.threads,
        deadline=board.now + budget_s,
        clock=lambda: board.now,
        cpu_clock=lambda: board.cpu_s,
    )


@pytest.mark.parametrize(
    ("times", "budget_s", "least_kinds", "least_samples"),
    [(LAPTOP, 20.0, 15, 1), (LAPTOP, 5.0, 14, 1), (PI_5, 20.0, 12, 1), (PI_4, 20.0, 5, 1)],
    ids=["laptop", "laptop in a hurry", "pi 5", "pi 4"],
)
def test_the_budget_is_kept_on_any_board(
    times: StepTimes, budget_s: float, least_kinds: int, least_samples: int
) -> None:
    """Measuring ends within the budget; a slow board times fewer kinds of steps, but those that a fit needs."""
    board = SimulatedBoard(times)
    timings = _time(board, budget_s)
    assert board.now <= budget_s
    assert board.now >= 0.5 * budget_s
    assert len(timings.steps) >= least_kinds
    assert min(len(samples) for samples in timings.steps.values()) >= least_samples
    assert {StepKind(1, 1, 0), StepKind(1, 1, 4095), StepKind(1, 16, 0)} <= timings.steps.keys()


@pytest.mark.parametrize("times", [LAPTOP, PI_5], ids=["laptop", "pi 5"])
def test_predictions_are_those_of_the_board(times: StepTimes) -> None:
    """What is fitted predicts decoding at any batch and context, and prompts, as the board takes for them."""
    timings = _time(SimulatedBoard(times), 20.0)
    fitted = fit_step_times(
        timings.measured_steps(),
        threads=times.threads,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        window_tokens=None,
        bandwidth_bytes_per_s=timings.bandwidth_table()[-1][1],
    )
    for batch in (1, 2, 3, 4, 8):
        for context in (0, 700, 4095):
            truth = times.decode_step_s(batch=batch, context_tokens=context, kv_bytes_per_token=KV_BYTES_PER_TOKEN)
            assert fitted.decode_step_s(
                batch=batch, context_tokens=context, kv_bytes_per_token=KV_BYTES_PER_TOKEN
            ) == pytest.approx(truth, rel=0.01)
    assert fitted.prefill_s(prompt_tokens=1000, chunk_tokens=64) == pytest.approx(
        times.prefill_s(prompt_tokens=1000, chunk_tokens=64), rel=0.05
    )
    assert fitted.bandwidth_bytes_per_s == pytest.approx(times.bandwidth_bytes_per_s)


def test_reading_is_timed_with_fewer_threads() -> None:
    """Bandwidth is measured with one thread, powers of two, and all; steps always compute with all."""
    board = SimulatedBoard(PI_5)
    table = _time(board, 20.0).bandwidth_table()
    assert [threads for threads, _ in table] == [1, 2, 4]
    assert [speed for _, speed in table] == pytest.approx([3e9, 6e9, 12e9])
    assert board.threads == 4


def test_quick_steps_are_timed_more_often_than_long_ones() -> None:
    """Within a budget a decode has many more samples than a long chunk, and both are spread over the whole time."""
    steps = _time(SimulatedBoard(LAPTOP), 20.0).steps
    assert len(steps[StepKind(1, 1, 0)]) >= 10 * len(steps[StepKind(1, 256, 0)])


def test_a_context_of_few_pages_is_measured_as_far_as_it_goes() -> None:
    """Steps that the pages cannot hold are left out."""
    board = SimulatedBoard(LAPTOP)
    board.spec = BackendSpec(vocab_size=64, page_size=16, num_pages=4, max_batch_tokens=8, max_context_tokens=4096)
    board.fill_pages()
    steps = _time(board, 5.0).steps
    assert max(kind.context_tokens + kind.rows for kind in steps) == 64
    assert max(kind.sequences * kind.rows for kind in steps) == 4


def _timings(*, cpu_share: float = 1.0, bandwidth: tuple[float, ...] = (5e9,) * 6) -> Timings:
    return Timings(bandwidth={2: list(bandwidth)}, busy_s=10.0, cpu_s=20.0 * cpu_share)


@pytest.mark.parametrize(
    ("timings", "other_cores", "noise"),
    [
        (_timings(), 0.05, ()),
        (_timings(), None, ()),
        (_timings(cpu_share=0.6), None, ("the threads that computed had 60 % of the time of their cores",)),
        (_timings(), 1.5, ("other programs kept 1.5 cores busy",)),
        (_timings(bandwidth=(5e9, 5e9, 5e9, 9e9, 9e9, 9e9)), 0.0, ("memory was read at speeds 57 % apart",)),
    ],
)
def test_a_disturbed_measurement_says_so(timings: Timings, other_cores: float | None, noise: tuple[str, ...]) -> None:
    """Cores taken away, other programs and changing memory each make a result noisy, with the figure."""
    conditions = judge_conditions(timings, threads=2, other_cores=other_cores)
    assert conditions.noise == noise
    assert conditions.is_noisy == bool(noise)


@pytest.mark.parametrize(
    ("stat", "seconds"),
    [
        ("cpu  100 20 30 9999 888 7 3 40 55 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", 200),
        ("cpu  100 20 30 9999 888 7 3\n", 160),
        ("cpu  100 x 30 9999 888 7 3 40\n", None),
        ("intr 5\n", None),
        ("", None),
        (None, None),
    ],
)
def test_busy_time_is_all_but_idle_and_waiting(tmp_path: Path, stat: str | None, seconds: int | None) -> None:
    """Guest time, which user time holds already, does not count twice; what cannot be read is None."""
    if stat is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(stat)
    assert _busy_s(tmp_path) == (None if seconds is None else seconds / 100)


def test_a_budget_too_small_is_refused(tmp_path: Path) -> None:
    """A budget in which nothing can be measured is refused before anything is loaded."""
    with pytest.raises(ConfigError, match=r"time_budget_s is 0\.5; must be at least 1"):
        calibrate_model(tmp_path, RuntimeOptions(), time_budget_s=0.5)


@pytest.mark.tvm
@pytest.mark.parametrize("kv_dtype", ["int8", "float16"])
def test_a_real_model_is_calibrated(models: dict[str, Path], tmp_path: Path, kv_dtype: str) -> None:
    """A compiled model is measured within its budget; the result is complete and is found for its bundle."""
    calibration = calibrate_model(models["q4f16_1"], RuntimeOptions(kv_dtype=kv_dtype, threads=1), time_budget_s=4.0)
    assert calibration.total_s < 6.0
    assert calibration.kv_dtype is KvDtype(kv_dtype)
    assert (calibration.model, calibration.quantization, calibration.requested_threads) == ("q4f16_1", "q4f16_1", 1)
    rows = [rows for rows, _ in calibration.times.rows]
    assert rows[:5] == [1, 2, 3, 4, 8]
    assert rows[5:] == [count for count in (16, 64, 128, 256) if count <= max(rows)]
    assert 64 in rows
    assert calibration.times.prefill_s_per_pair > 0
    assert [threads for threads, _ in calibration.bandwidth] == [1]
    save_calibration(tmp_path, calibration)
    with _reloaded(models["q4f16_1"], kv_dtype) as model:
        key = build_key_of(model.bundle, 1)
    assert find_calibration(tmp_path, calibration.device_key, key) == calibration


def _reloaded(path: Path, kv_dtype: str) -> LoadedModel:
    from edgephi.runtime import load_model

    return load_model(path, RuntimeOptions(kv_dtype=kv_dtype, threads=1))


@pytest.mark.tvm
@pytest.mark.parametrize("kv_dtype", ["int8", "float16", "float32"])
def test_filled_pages_are_memory_with_finite_content(load: Load, kv_dtype: str) -> None:
    """After filling, every page holds what was computed into the first, and attention over them gives numbers."""
    name, activations = ("q4f16_1", "float32") if kv_dtype == "float32" else ("q4f16_1", "int8")
    model = load(name, kv_dtype=kv_dtype, activations=activations, kv_tokens=256)
    backend = model.backend
    backend.forward(make_batch(StepKind(1, 16, 0), backend.spec))
    backend.fill_pages()
    pages = backend._pages  # nothing public reads pages
    assert pages.any(axis=3).all()
    assert (pages == pages[:, :, :1]).all()
    assert np.isfinite(backend.forward(make_batch(StepKind(4, 1, 40), backend.spec))).all()


@pytest.mark.tvm
def test_the_number_of_threads_changes_no_result(load: Load) -> None:
    """Threads can be changed between two calls; logits stay the same, and all weights are read."""
    backend = load("q4f16_1", kv_tokens=64).backend
    batch = make_batch(StepKind(1, 16, 0), backend.spec)
    found = []
    for count in (1, 2, 1):
        backend.use_threads(count)
        found.append(backend.forward(batch))
        assert backend.read_weights() > 0.9 * backend.step_weight_bytes
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


@pytest.mark.tvm
def test_a_loaded_model_computes_as_before(load: Load) -> None:
    """Calibrating a loaded model leaves it as it was: the same logits, the same threads."""
    model = load("q4f16_1", kv_tokens=128)
    before = model.logits([5, 6, 7])
    calibration: Calibration = calibrate_loaded(model, name="tiny", time_budget_s=1.0)
    assert calibration.times.threads == model.threads
    assert (model.logits([5, 6, 7]) == before).all()
