from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgephi.artifact.bundle import Bundle
from edgephi.artifact.synth import PRESETS, synthesize
from edgephi.cli.planned_model import PlannedModel, facts_of_bundle, find_model_facts
from edgephi.cli.planning import PlanningOptions, plan_for
from edgephi.errors import ConfigError, ModelNotFound
from edgephi.profile.calibration import Calibration, Conditions, device_key, save_calibration
from edgephi.profile.machine.probe import probe
from edgephi.profile.plan import KvDtype, PlanKind
from edgephi.profile.speed import StepTimes
from edgephi.runtime.bundles import ensure_bundle, host_options
from edgephi.runtime.calibrate import build_key_of, calibration_dir

BOARD = """
family: workbench
title: Workbench
isa_level: armv8.2-dotprod
clusters:
  - core: Cortex-A76
    count: 8
    max_mhz: {value: 3000, evidence: measured, source: ours}
bandwidth_gbps: {value: 100, evidence: theoretical, source: ours}
effective_gbps: {value: 80, evidence: measured, source: ours}
variants:
  - name: workbench-8gb
    memory_gib: {value: 8, evidence: published, source: ours}
    os_reserve_gib: {value: 1, evidence: measured, source: ours}
"""


@pytest.fixture(autouse=True)
def _no_boards_or_calibrations_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEPHI_DEVICE_FILES", raising=False)


def _calibration(
    model: PlannedModel, *, seconds: float, build: str = "b" * 64, threads: int | None = None
) -> Calibration:
    """Return a calibration of this machine, as if a step of *model* had taken so many seconds."""
    if threads is None:
        threads = plan_for(PlanningOptions()).basis.device.num_threads
    return Calibration(
        device_key=device_key(probe()),
        build_key=build,
        model_key="m" * 64,
        measured_at="2026-01-02T03:04:05.000000Z",
        device="this",
        model=model.facts.name,
        quantization=model.facts.quantization,
        level="any",
        kv_dtype=KvDtype.INT8,
        step_weight_bytes=model.facts.step_weight_bytes,
        kv_bytes_per_token=model.facts.kv_bytes_per_token[KvDtype.INT8],
        requested_threads=None,
        tvm_version="1",
        edgephi_version="1",
        bandwidth=((1, 1e10),),
        steps=(),
        times=StepTimes(
            threads=threads, rows=((1, seconds), (256, 10 * seconds)), kv_s_per_byte=0, prefill_s_per_pair=0
        ),
        conditions=Conditions(cpu_share=1.0, other_cores=0.0, bandwidth_spread=0.0),
        load_s=1.0,
        total_s=2.0,
    )


def test_a_model_that_is_not_here_has_exact_sizes() -> None:
    """Without any installed model phi3-mini-4k has the sizes of the packed model, and 3 bits as an alternative."""
    model = find_model_facts("phi3-mini-4k")
    assert (model.path, model.is_here) == (None, False)
    facts = model.facts
    assert (facts.weights_bytes, facts.step_weight_bytes) == (2_150_043_904, 2_094_637_248)
    assert facts.kv_bytes_per_token == {KvDtype.INT8: 200_704, KvDtype.FLOAT16: 393_216, KvDtype.FLOAT32: 786_432}
    assert (facts.context_tokens, facts.window_tokens, facts.num_layers) == (4096, 2047, 32)
    assert [other.weights_bytes for other in model.alternatives] == [1_697_059_072]


def test_an_installed_model_wins_over_the_shapes_of_that_name(tmp_path: Path) -> None:
    """A folder in the models folder is planned with its own shapes, in its own or in another quantization."""
    # The fixture of this folder points EDGEPHI_MODELS there.
    synthesize("phi3-tiny", tmp_path / "models" / "phi3-mini-4k", quantization="q3f16_g32")
    installed = find_model_facts("phi3-mini-4k")
    assert (installed.facts.num_layers, installed.facts.quantization) == (PRESETS["phi3-tiny"].num_layers, "q3f16_g32")
    assert installed.is_here
    other = find_model_facts("phi3-mini-4k", "q4f16_1")
    assert (other.facts.quantization, other.is_here) == ("q4f16_1", False)
    assert other.facts.weights_bytes > installed.facts.weights_bytes


def test_an_unknown_model_lists_what_there_is() -> None:
    """A name that is neither installed nor a preset's is refused with both lists."""
    with pytest.raises(ModelNotFound, match=r"'phi5'.*installed: none; .*phi3-mini-4k"):
        find_model_facts("phi5")


@pytest.mark.tvm
@pytest.mark.parametrize("kv_dtype", [KvDtype.INT8, KvDtype.FLOAT16])
def test_facts_are_those_of_a_compiled_model(tiny: Path, kv_dtype: KvDtype) -> None:
    """What the configuration alone promises is what compiling the model gives."""
    from edgephi.runtime.model import kv_bytes_per_token

    _, bundle = ensure_bundle(tiny, host_options(kv_dtype=kv_dtype.value))
    planned = find_model_facts(str(tiny), kv_dtype=kv_dtype)
    assert planned.bundle == bundle
    promised = find_model_facts("phi3-tiny").facts
    assert dataclasses.replace(promised, name=planned.facts.name) == planned.facts
    assert promised.kv_bytes_per_token[kv_dtype] == kv_bytes_per_token(bundle)
    assert promised.page_tokens == bundle.page_size
    assert promised.max_batch_tokens == bundle.max_batch_tokens


def test_what_compiling_fixed_wins(tiny: Path) -> None:
    """A bundle with fewer rows or other sizes than usual is planned as it is."""
    facts = find_model_facts(str(tiny)).facts
    bundle = _bundle(facts.context_tokens // 2)
    found = facts_of_bundle(facts, bundle)
    assert (found.max_batch_tokens, found.context_tokens, found.weights_bytes) == (32, facts.context_tokens // 2, 4096)


def _bundle(context_tokens: int) -> Bundle:
    from edgephi.artifact.bundle import FileDigest

    file = FileDigest(nbytes=4096, sha256="0" * 64)
    return Bundle(
        format_version=2, fingerprint="0" * 64, model_digest="", compiler_digest="", level="any", arch="any",
        required_features=(), compiler={}, quantization="q4f16_1", activations="int8", kv_dtype="int8", page_size=16,
        page_elements=1, max_batch_tokens=32, num_layers=2, num_kv_heads=2, head_dim=96, vocab_size=512,
        context_tokens=context_tokens, library=file, weights=file, parameters=(),
    )  # fmt: skip


def test_this_machine_is_planned_within_what_it_has() -> None:
    """Without a calibration this machine is estimated, with its own cores and no more memory than was declared."""
    planned = plan_for(PlanningOptions(memory_bytes=3 << 30))
    assert planned.is_this_machine
    assert planned.plan.kind is PlanKind.CATALOGUE
    assert planned.basis.bounds is not None
    assert planned.basis.device.memory_budget_bytes <= 3 << 30
    clusters = probe().cpu.clusters
    num_cpus = sum(len(cluster.cpus) for cluster in clusters)
    assert 1 <= planned.basis.device.num_threads <= num_cpus
    assert planned.basis.board is not None
    assert planned.basis.calibration is None


def test_a_calibration_replaces_estimates() -> None:
    """Once this machine was measured its own times are planned with, also for the model in another quantization."""
    model = find_model_facts("phi3-mini-4k")
    save_calibration(calibration_dir(), _calibration(model, seconds=0.05))
    planned = plan_for(PlanningOptions())
    assert planned.plan.kind is PlanKind.CALIBRATED
    assert planned.basis.bounds is None
    assert planned.plan.predicted is not None
    assert planned.plan.predicted.decode_empty_tokens_per_s == pytest.approx(20)
    assert "2026-01-02 at 03:04" in planned.basis.source
    smaller = plan_for(PlanningOptions(quantization="q3f16_g32")).plan
    assert smaller.kind is PlanKind.CALIBRATED
    assert smaller.predicted is not None
    assert (smaller.predicted.decode_empty_tokens_per_s or 0) > 20


def test_a_calibration_of_something_else_is_not_used() -> None:
    """Times of another model, with other threads or of another device say nothing here."""
    mini, tiny = find_model_facts("phi3-mini-4k"), find_model_facts("phi3-tiny")
    known = _calibration(mini, seconds=0.05)
    for other in (
        _calibration(tiny, seconds=0.05, threads=known.times.threads),
        _calibration(mini, seconds=0.05, threads=known.times.threads + 1),
        dataclasses.replace(known, device_key="d" * 64),
    ):
        save_calibration(calibration_dir(), other)
    assert plan_for(PlanningOptions()).plan.kind is PlanKind.CATALOGUE


def test_the_quiet_one_is_preferred() -> None:
    """Of several calibrations of one model, one that nothing disturbed counts, even if it is older."""
    model = find_model_facts("phi3-mini-4k")
    quiet = _calibration(model, seconds=0.05)
    noisy = dataclasses.replace(
        quiet,
        measured_at="2026-02-02T00:00:00.000000Z",
        conditions=dataclasses.replace(quiet.conditions, noise=("other programs kept 1.5 cores busy",)),
        times=dataclasses.replace(quiet.times, rows=((1, 0.2),)),
    )
    for calibration in (quiet, noisy):
        save_calibration(calibration_dir(), calibration)
    assert plan_for(PlanningOptions()).basis.calibration == quiet


@pytest.mark.tvm
def test_the_very_build_is_preferred(tiny: Path) -> None:
    """A calibration of the compiled model that would be served wins over one of a twin."""
    _, bundle = ensure_bundle(tiny, host_options())
    model = find_model_facts(str(tiny))
    threads = plan_for(PlanningOptions(model=str(tiny))).basis.device.num_threads
    own = _calibration(model, seconds=0.01, build=build_key_of(bundle, threads), threads=threads)
    twin = dataclasses.replace(own, build_key="t" * 64, measured_at="2026-02-02T00:00:00.000000Z")
    for calibration in (own, twin):
        save_calibration(calibration_dir(), calibration)
    assert plan_for(PlanningOptions(model=str(tiny))).basis.calibration == own


def test_boards_of_a_users_file_can_be_planned_for(tmp_path: Path) -> None:
    """A board of a user's own file is planned for as a shipped one, and is unknown without the file."""
    file = tmp_path / "boards.yaml"
    file.write_text(BOARD)
    planned = plan_for(PlanningOptions(device="workbench-8gb", device_files=(file,)))
    assert planned.plan.feasible
    assert planned.basis.device.memory_budget_bytes == 7 << 30
    with pytest.raises(ConfigError, match="workbench-8gb"):
        plan_for(PlanningOptions(device="workbench-8gb"))


def test_more_memory_may_be_tried_on_a_generic_board_only() -> None:
    """A generic board's memory is assumed, so another amount may be asked for; that of a real board is known."""
    generic = plan_for(PlanningOptions(device="generic-armv8.2-dotprod", memory_bytes=64 << 30))
    assert generic.basis.device.memory_budget_bytes == 64 << 30
    with pytest.raises(ConfigError, match=r"64.00 GiB, but raspberry-pi-5-8gb has 8.00 GiB"):
        plan_for(PlanningOptions(device="raspberry-pi-5-8gb", memory_bytes=64 << 30))
