"""Bundles: every kind of damage has its error before the library is loaded, and the cache is used when it can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgephi.artifact.bundle import (
    FORMAT_VERSION,
    Bundle,
    BundleOptions,
    FileDigest,
    check_digest,
    file_digest,
    read_bundle,
    verify_bundle,
)
from edgephi.errors import BundleInvalid, CompileFailed, ConfigError, CpuUnsupported, UnsupportedModel
from edgephi.profile.machine.threads import ThreadPlan
from edgephi.runtime import bundles, load_model
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


def _halve(name: str) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        path = bundle / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _empty(name: str) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        (bundle / name).write_bytes(b"")

    return damage


def _fill_with_noise(name: str) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        path = bundle / name
        path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))

    return damage


def _flip_in_header(at: int) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        _flip(bundle / "weights.bin", at)

    return damage


def _make_folder(name: str) -> Callable[[Path, dict[str, Path]], None]:
    def damage(bundle: Path, models: dict[str, Path]) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return damage


def _take_weights_of_another(bundle: Path, models: dict[str, Path]) -> None:
    # The exact one has the same weights and size but was not packed for this library.
    other = bundle_folder(models["hf-plain"], host_options(activations="float32", kv_dtype="float32"))
    shutil.copy(other / "weights.bin", bundle)


def _take_description_of_another(bundle: Path, models: dict[str, Path]) -> None:
    shutil.copy(bundle_folder(models["q4f16_1"], host_options()) / "bundle.json", bundle)


def _change_format(bundle: Path, models: dict[str, Path]) -> None:
    _forge(bundle, format_version=99)


def _change_fingerprint(bundle: Path, models: dict[str, Path]) -> None:
    _forge(bundle, fingerprint="fingerprint")


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
    ("half of the weights", _halve("weights.bin"), r"weights\.bin has \d+ bytes, bundle\.json says \d+"),
    ("empty weights", _empty("weights.bin"), r"weights\.bin has 0 bytes"),
    ("weights of another kind", _fill_with_noise("weights.bin"), r"weights\.bin does not start as packed weights do"),
    ("flipped bit in the magic", _flip_in_header(3), r"weights\.bin does not start as packed weights do"),
    ("flipped bit in the fingerprint", _flip_in_header(20), r"weights\.bin was not packed for .*model\.so"),
    ("flipped bit in the header's end", _flip_in_header(63), r"weights\.bin was not packed for .*model\.so"),
    ("weights are a folder", _make_folder("weights.bin"), r"weights\.bin is missing"),
    ("foreign weights", _take_weights_of_another, r"weights\.bin was not packed for .*model\.so"),
    ("foreign description", _take_description_of_another, r"has \d+ bytes, bundle\.json says \d+"),
    ("other format", _change_format, f"has format 99, this version reads {FORMAT_VERSION}"),
    ("field missing", _drop_a_field, "not a bundle this version reads.*fingerprint"),
    ("cut description", _cut_description, "not a bundle this version reads"),
    ("empty description", _empty("bundle.json"), "not a bundle this version reads"),
    ("noise as description", _fill_with_noise("bundle.json"), "not a bundle this version reads"),
    ("description is a folder", _make_folder("bundle.json"), r"bundle\.json cannot be read \(Is a directory\)"),
    ("fingerprint of no digest", _change_fingerprint, "not a bundle this version reads.*fingerprint"),
    ("half of the library", _halve("model.so"), r"model\.so has \d+ bytes, bundle\.json says \d+"),
    ("empty library", _empty("model.so"), r"model\.so has 0 bytes"),
    ("no library", _remove_library, r"model\.so is missing"),
    ("no description", _remove_description, r"bundle\.json does not exist"),
    ("parameter past the end", _parameter(offset=1 << 40), "does not fit a file of"),
    ("parameter not aligned", _parameter(offset=100), "does not fit"),
    ("parameter of another size", _parameter(nbytes=64), "does not fit"),
    ("parameter of unknown type", _parameter(dtype="float5"), "unknown type 'float5'"),
    ("parameter of objects", _parameter(dtype="O"), "unknown type 'O'"),
    ("parameter of fields", _parameter(dtype="f4,f4"), "unknown type 'f4,f4'"),
    ("parameter of negative size", _parameter(shape=[-1], dtype="float32", nbytes=-4), "does not fit"),
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("name", ["bundle.json", "weights.bin"])
def test_a_file_that_may_not_be_read_is_named(name: str, bundle: Path) -> None:
    """Missing permission is the reason given, not a traceback."""
    (bundle / name).chmod(0)
    with pytest.raises(BundleInvalid, match=rf"{name} cannot be read \(Permission denied\)"):
        read_bundle(bundle)


def test_a_library_that_may_not_be_read_is_named(bundle: Path) -> None:
    """Reading the library fails with a reason where the system refuses it after its size was checked."""
    _make_folder("model.so")(bundle, {})
    with pytest.raises(BundleInvalid, match=r"model\.so cannot be read \(Is a directory\)"):
        check_digest(bundle / "model.so", FileDigest(nbytes=0, sha256=""))


def _compile_c(source: str, out: Path) -> None:
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(out)], input=source, text=True, check=True)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(lambda path: path.write_bytes(b"not a library"), "invalid ELF header|file too short", id="text"),
        pytest.param(lambda path: _flip(path, 18), "cannot open shared object|ELF", id="other-machine"),
        pytest.param(lambda path: _compile_c("int answer(void) { return 42; }", path), "", id="foreign"),
    ],
)
def test_what_the_loader_refuses_has_a_reason(
    write: Callable[[Path], object], reason: str, model: Path, bundle: Path
) -> None:
    """A file that its digest vouches for and that is no library for this machine, or none of ours, is refused."""
    path = bundle / "model.so"
    write(path)
    digest = file_digest(path)
    _forge(bundle, library={"nbytes": digest.nbytes, "sha256": digest.sha256})
    with pytest.raises(BundleInvalid, match=rf"model\.so cannot be loaded \(.*({reason}).*compile the model again"):
        load_model(model)


def test_weights_that_are_replaced_while_loading_are_refused(
    model: Path, bundle: Path, models: dict[str, Path]
) -> None:
    """What is mapped is checked again: another process may have put a new bundle in place since it was read."""
    found = read_bundle(bundle)
    _take_weights_of_another(bundle, models)
    plan = ThreadPlan(1, None, "a test")
    with pytest.raises(BundleInvalid, match="fingerprint differs"):
        _backend(bundle, found, plan)
    _truncate(bundle, models)
    with pytest.raises(BundleInvalid, match="shorter than when it was checked"):
        _backend(bundle, found, plan)


def _backend(folder: Path, bundle: Bundle, threads: ThreadPlan) -> object:
    # Here, for a test process that also compiles must load the compiler first.
    from edgephi.runtime.tvm_backend import TvmBackend

    return TvmBackend(folder, bundle, num_pages=1, threads=threads)


_WITH_LITTLE_ADDRESS_SPACE = """
import os, resource, sys
from pathlib import Path
import msgspec
from edgephi.artifact.bundle import FileDigest, read_bundle
from edgephi.errors import InsufficientMemory
from edgephi.runtime import tvm_backend
folder, what = Path(sys.argv[1]), sys.argv[2]
bundle = read_bundle(folder)
os.truncate(folder / "weights.bin", 1 << 30)
bundle = msgspec.structs.replace(bundle, weights=FileDigest(nbytes=1 << 30, sha256=""))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    if what == "weights":
        tvm_backend._map_weights(folder, bundle)
    else:
        tvm_backend._zeros((2, 2, 65536, 6144), "int8")
except InsufficientMemory as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "weights",
            r"1024 MiB of weights cannot be mapped \(Cannot allocate memory\); raise the limit on address space",
        ),
        ("pages", r"1536 MiB for 65536 pages of keys and values cannot be allocated \(Cannot allocate memory\)"),
    ],
)
def test_too_little_address_space_names_the_numbers(what: str, message: str, bundle: Path) -> None:
    """Under ``ulimit -v`` what cannot be allocated is named with its size."""
    command = [sys.executable, "-c", _WITH_LITTLE_ADDRESS_SPACE, str(bundle), what]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert re.match(message, run.stdout)


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


def test_leftovers_of_a_killed_compiler_are_removed(model: Path, bundle: Path) -> None:
    """Compiling begins by removing what was left half-written, of this bundle alone."""
    shutil.rmtree(bundle)
    leftovers = [bundle.parent / f".{bundle.name}-abcdefg1", bundle.parent / f".{bundle.name}-old-abcdefg2"]
    others = [bundle.parent / f".{bundle.name}_float32-kv-abcdefg3", bundle.parent / ".else"]
    for folder in leftovers + others:
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"half")
    ensure_bundle(model, host_options())
    assert not any(folder.exists() for folder in leftovers)
    assert all(folder.exists() for folder in others)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize(
    ("spare_bytes", "is_checked", "message"),
    [
        pytest.param(-(256 << 10), True, r"has \d+ MiB free and the compiled model takes about \d+ MiB", id="refused"),
        pytest.param(-(256 << 10), False, "writing .* failed: .*free space", id="while-packing"),
        pytest.param(64 << 10, True, "No space left|writing .* failed", id="while-linking"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    spare_bytes: int,
    is_checked: bool,
    message: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk too small for the bundle is refused at once, one that fills up fails, and neither keeps parts of it."""
    model = shutil.copytree(models["q4f16_1"], tmp_path / "model", ignore=shutil.ignore_patterns("build"))
    build = model / "build"
    build.mkdir()
    size = (models["q4f16_1"] / "build" / host_options().folder_name / "weights.bin").stat().st_size + spare_bytes
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(build)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    if not is_checked:  # as where another program fills the disk meanwhile
        monkeypatch.setattr(bundles, "_check_disk", lambda *_: None)
    try:
        with pytest.raises(CompileFailed, match=message):
            ensure_bundle(model, host_options())
        assert [path.suffix for path in build.iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", str(build)], check=True)


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
