"""Bundles: every kind of damage has its error before the library is loaded, and the cache is used when it can be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgephi.artifact.bundle import BundleOptions, file_digest, read_bundle, verify_bundle
from edgephi.errors import BundleInvalid, CompileFailed, ConfigError, CpuUnsupported, UnsupportedModel
from edgephi.runtime import load_model
from edgephi.runtime.bundles import bundle_folder, current_bundle, ensure_bundle, host_options

pytestmark = pytest.mark.tvm

TOKENS = [5, 6, 7, 8]


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    """A compiled tiny model of its own, to be damaged by the test."""
    return shutil.copytree(models["hf-plain"], tmp_path / "model")


@pytest.fixture
def bundle(model: Path) -> Path:
    """The folder of its default bundle."""
    return bundle_folder(model, host_options())


class Reports:
    """Counts what a compiler reports; nothing is reported when a bundle is taken from the cache."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def __call__(self, label: str, done: int, total: int) -> None:
        self.labels.append(label)


def _forge(bundle: Path, **changes: Any) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def _truncate(bundle: Path, models: dict[str, Path]) -> None:
    path = bundle / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])


def _take_weights_of_another(bundle: Path, models: dict[str, Path]) -> None:
    # The exact one has the same weights and size but was not packed for this library.
    other = bundle_folder(models["hf-plain"], host_options(activations="float32", kv_dtype="float32"))
    shutil.copy(other / "weights.bin", bundle)


def _take_description_of_another(bundle: Path, models: dict[str, Path]) -> None:
    shutil.copy(bundle_folder(models["q4f16_1"], host_options()) / "bundle.json", bundle)


def _change_format(bundle: Path, models: dict[str, Path]) -> None:
    _forge(bundle, format_version=99)


def _drop_a_field(bundle: Path, models: dict[str, Path]) -> None:
    document = json.loads((bundle / "bundle.json").read_text())
    del document["fingerprint"]
    (bundle / "bundle.json").write_text(json.dumps(document))


def _cut_description(bundle: Path, models: dict[str, Path]) -> None:
    path = bundle / "bundle.json"
    path.write_bytes(path.read_bytes()[:100])


def _remove_library(bundle: Path, models: dict[str, Path]) -> None:
    (bundle / "model.so").unlink()


def _remove_description(bundle: Path, models: dict[str, Path]) -> None:
    (bundle / "bundle.json").unlink()


def _parameter(**changes: Any) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        parameters = json.loads((bundle / "bundle.json").read_text())["parameters"]
        parameters[3] |= changes
        _forge(bundle, parameters=parameters)

    return damage


DAMAGES: list[tuple[str, Callable[[Path, dict[str, Path]], None], str]] = [
    ("truncated weights", _truncate, r"weights\.bin has \d+ bytes, bundle\.json says \d+"),
    ("foreign weights", _take_weights_of_another, r"weights\.bin was not packed for .*model\.so"),
    ("foreign description", _take_description_of_another, r"has \d+ bytes, bundle\.json says \d+"),
    ("other format", _change_format, "has format 99, this version reads 1"),
    ("field missing", _drop_a_field, "not a bundle this version reads.*fingerprint"),
    ("cut description", _cut_description, "not a bundle this version reads"),
    ("no library", _remove_library, r"model\.so is missing"),
    ("no description", _remove_description, r"bundle\.json does not exist"),
    ("parameter past the end", _parameter(offset=1 << 40), "does not fit a file of"),
    ("parameter not aligned", _parameter(offset=100), "does not fit"),
    ("parameter of another size", _parameter(nbytes=64), "does not fit"),
    ("parameter of unknown type", _parameter(dtype="float5"), "unknown type 'float5'"),
]


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_named_and_never_taken_for_current(
    damage: Callable[[Path, dict[str, Path]], None], message: str, model: Path, bundle: Path, models: dict[str, Path]
) -> None:
    """Each kind of damage raises BundleInvalid saying what is wrong, and the bundle is not used."""
    assert current_bundle(model, host_options()) is not None
    damage(bundle, models)
    with pytest.raises(BundleInvalid, match=message):
        read_bundle(bundle)
    assert current_bundle(model, host_options()) is None


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
def test_one_flipped_bit_is_found_by_verification(name: str, bundle: Path) -> None:
    """``verify_bundle`` reads every byte and names the file that differs."""
    verify_bundle(bundle)
    _flip(bundle / name, -1)
    with pytest.raises(BundleInvalid, match=f"{name} is damaged: sha256"):
        verify_bundle(bundle)


def test_a_flipped_bit_in_the_library_is_found_before_it_is_loaded(model: Path, bundle: Path) -> None:
    """Code that differs from its digest is refused; it is never mapped into the process."""
    _flip(bundle / "model.so", 4096)
    with pytest.raises(BundleInvalid, match=r"model\.so is damaged"):
        load_model(model)
    assert not _is_mapped(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"required_features": ["warp_drive", "fpu"]}, "needs warp_drive; this CPU lacks it"),
        ({"arch": "riscv64"}, "is for riscv64 and this machine is"),
    ],
)
def test_a_library_for_another_cpu_is_refused_before_it_is_loaded(
    changes: dict[str, Any], message: str, model: Path, bundle: Path
) -> None:
    """Missing instructions are named instead of ending the process with an illegal one."""
    _forge(bundle, **changes)
    with pytest.raises(CpuUnsupported, match=message):
        load_model(model)
    assert not _is_mapped(bundle)


def test_a_library_of_another_bundle_is_refused(model: Path, bundle: Path, models: dict[str, Path]) -> None:
    """Even where bundle.json was forged to name it, the library itself says what it was made with."""
    other = bundle_folder(models["hf-grouped"], host_options(activations="float32", kv_dtype="float32"))
    shutil.copy(other / "model.so", bundle)
    digest = file_digest(bundle / "model.so")
    _forge(bundle, library={"nbytes": digest.nbytes, "sha256": digest.sha256})
    with pytest.raises(BundleInvalid, match=r"model\.so was not made with .*weights\.bin"):
        load_model(model)


def test_a_bundle_of_other_options_is_not_current(model: Path, bundle: Path) -> None:
    """A bundle that lies in the folder of other options, having been copied there, is not used for them."""
    options = host_options(kv_dtype="float32")
    shutil.copytree(bundle, bundle_folder(model, options))
    assert current_bundle(model, host_options()) is not None
    assert current_bundle(model, options) is None


def test_the_second_load_compiles_nothing_until_the_weights_change(model: Path, models: dict[str, Path]) -> None:
    """A bundle is reused while model and compiler are the same, and made anew when the model's weights change."""
    reports = Reports()
    with load_model(model, progress=reports) as loaded:
        before = loaded.logits(TOKENS)
    assert reports.labels == []
    for name in ("params_shard_0.bin", "tensor-cache.json"):
        shutil.copy(models["hf-longrope"] / name, model)
    with load_model(model, progress=reports) as loaded:
        after = loaded.logits(TOKENS)
    assert reports.labels[0] == "loading the compiler"
    assert reports.labels[-1] == "compiling kernels"
    assert np.abs(after - before).max() > 0.1
    reports.labels.clear()
    with load_model(model, progress=reports) as loaded:
        np.testing.assert_array_equal(loaded.logits(TOKENS), after)
    assert reports.labels == []


def test_a_damaged_bundle_is_replaced(model: Path, bundle: Path, models: dict[str, Path]) -> None:
    """Where a compiler is installed, a bundle that cannot be read is made again."""
    _truncate(bundle, models)
    with load_model(model) as loaded, load_model(models["hf-plain"]) as original:
        np.testing.assert_array_equal(loaded.logits(TOKENS), original.logits(TOKENS))
    verify_bundle(bundle)
    assert sorted(path.name for path in bundle.parent.iterdir() if path.suffix != ".lock") == sorted(
        path.name for path in bundle.parent.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def test_a_model_inside_installed_code_has_its_bundle_in_the_cache(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written beside a model in site-packages; an up-to-date bundle that lies there is used all the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packaged = shutil.copytree(models["hf-plain"], tmp_path / "site-packages" / "some" / "model")
    beside = packaged / "build" / host_options().level
    assert bundle_folder(packaged, host_options()) == beside
    shutil.rmtree(packaged / "build")
    folder = bundle_folder(packaged, host_options())
    assert folder.is_relative_to(tmp_path / "cache" / "edgephi")


def test_a_model_that_cannot_be_written_has_its_bundle_in_the_cache(
    model: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A stale bundle in a read-only folder is left alone; the new one is made in the cache and found there again.

    Root may write anywhere, so the test says "read-only" where the system would.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model)
    _forge(bundle, compiler_digest="0" * 64)
    kept = (bundle / "bundle.json").read_bytes()
    folder, made = ensure_bundle(model, host_options())
    assert folder.is_relative_to(tmp_path / "cache" / "edgephi")
    assert verify_bundle(folder) == made
    reports = Reports()
    assert ensure_bundle(model, host_options(), reports) == (folder, made)
    assert reports.labels == []
    assert (bundle / "bundle.json").read_bytes() == kept


def test_without_a_compiler_the_reason_is_given(
    model: Path, bundle: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without the compiler runs a current bundle, says what is wrong with a damaged one, and how to get one."""
    monkeypatch.setitem(sys.modules, "edgephi.compiler", None)
    assert ensure_bundle(model, host_options())[0] == bundle
    _truncate(bundle, models)
    with pytest.raises(BundleInvalid, match=r"weights\.bin has \d+ bytes"):
        ensure_bundle(model, host_options())
    shutil.rmtree(bundle)
    with pytest.raises(CompileFailed, match=r"no compiler is installed here.*edgephi model compile --target"):
        ensure_bundle(model, host_options())


def test_the_compilers_refusals_keep_their_class(model: Path) -> None:
    """What the compiler process refuses is raised here as the error it was there, with its whole message."""
    with pytest.raises(ConfigError, match="activations is 'int4'"):
        ensure_bundle(model, BundleOptions(level=host_options().level, activations="int4"))
    path = model / "mlc-chat-config.json"
    document = json.loads(path.read_text())
    document["quantization"] = "q3f16_1"
    path.write_text(json.dumps(document))
    with pytest.raises(UnsupportedModel, match="q3f16_1"):
        load_model(model)


def test_two_processes_that_compile_at_once_end_with_one_bundle(models: dict[str, Path], tmp_path: Path) -> None:
    """Both get the model; one compiles and the other waits and takes what it made."""
    model = shutil.copytree(models["hf-plain"], tmp_path / "model", ignore=shutil.ignore_patterns("build"))
    script = (
        "import sys; from edgephi.runtime import load_model; reports = []\n"
        "with load_model(sys.argv[1], progress=lambda *r: reports.append(r)) as model:\n"
        "    print(bool(reports), model.logits([5, 6, 7, 8]).sum())"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(model)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [child.communicate(timeout=120)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(answer[0] for answer in answers) == ["False", "True"]
    assert answers[0][1] == answers[1][1]
    verify_bundle(bundle_folder(model, host_options()))
