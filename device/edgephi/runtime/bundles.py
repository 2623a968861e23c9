"""Finding the bundle a model needs on this machine, and making it when there is none or it is stale."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import platformdirs

from edgephi.artifact.bundle import BUNDLE_JSON, Bundle, BundleOptions, fingerprint, read_bundle
from edgephi.artifact.digest import compiler_digest, model_digest
from edgephi.artifact.manifest import Progress, read_manifest
from edgephi.errors import (
    BundleInvalid,
    CompileFailed,
    ConfigError,
    EdgephiError,
    IntegrityError,
    ModelInvalid,
    ModelNotFound,
    UnsupportedModel,
)
from edgephi.profile.machine.isa import best_level, host_arch, host_features

# What `python -m edgephi.compiler` may answer, by the name it answers with.
_COMPILER_ERRORS: Mapping[str, Callable[[str], EdgephiError]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (CompileFailed, ConfigError, IntegrityError, ModelInvalid, ModelNotFound, UnsupportedModel)
    }
)


def host_options(level: str | None = None, activations: str = "int8", kv_dtype: str = "int8") -> BundleOptions:
    """
    Return what to compile for on this machine.

    Args:
        level: Instruction-set level; the best this CPU has when None.
        activations: ``int8`` or ``float32``.
        kv_dtype: ``int8``, ``float16`` or ``float32``.

    Raises:
        CpuUnsupported: If no level fits this CPU.
    """
    chosen = level if level is not None else best_level(host_features(), host_arch()).name
    return BundleOptions(level=chosen, activations=activations, kv_dtype=kv_dtype)


def bundle_folder(model_dir: Path, options: BundleOptions) -> Path:
    """
    Return where the bundle of a model lives or will: ``build/<level>`` in the model's folder.

    A folder inside installed code or one that cannot be written has its bundle in the user's cache instead, under
    a name made of the model's digest, unless an up-to-date one came with it.
    """
    beside = model_dir / "build" / options.folder_name
    inside_package = any(parent.name in ("site-packages", "dist-packages") for parent in model_dir.resolve().parents)
    packaged = inside_package or _package_root() in model_dir.resolve().parents
    if (not packaged and os.access(model_dir, os.W_OK)) or _read_current(beside, model_dir, options) is not None:
        return beside
    name = f"{model_dir.resolve().parent.name}-{model_digest(model_dir)[:16]}"
    return Path(platformdirs.user_cache_dir("edgephi")) / "build" / name / options.folder_name


def current_bundle(model_dir: Path, options: BundleOptions) -> tuple[Path, Bundle] | None:
    """
    Return the folder and the contents of an up-to-date bundle, None where there is none.

    A bundle is up to date when it was made from these model files with these options, by the compiler installed
    here; where none is installed, by any.
    """
    folder = bundle_folder(model_dir, options)
    bundle = _read_current(folder, model_dir, options)
    return None if bundle is None else (folder, bundle)


def ensure_bundle(model_dir: Path, options: BundleOptions, progress: Progress | None = None) -> tuple[Path, Bundle]:
    """
    Return the folder and the contents of an up-to-date bundle, compiling it first where there is none.

    The compiler runs in a process of its own, so that this one never loads it.

    Args:
        model_dir: An MLC-LLM folder.
        options: What to compile for.
        progress: Called with a label, bytes done and bytes in all while compiling.

    Raises:
        CompileFailed: If compiling failed, with the compiler's message, or no compiler is installed.
        ModelNotFound: If the folder has no weights.
        ModelInvalid: If the model's files cannot be read, UnsupportedModel if they are of a kind that is not run.
        ConfigError: If an option has a value that the compiler does not know.
        BundleInvalid: If what the compiler left, or what came without one, cannot be read.
    """
    model_digest(model_dir)  # before a folder is made or a process started for what is no model
    found = current_bundle(model_dir, options)
    if found is not None:
        return found
    folder = bundle_folder(model_dir, options)
    if importlib.util.find_spec("edgephi.compiler") is None:
        if (folder / BUNDLE_JSON).is_file():
            read_bundle(folder)  # says what is wrong with it, if anything but its age is
        raise CompileFailed(
            f"{model_dir} has no up-to-date bundle for {options.level} and no compiler is installed here; run "
            f"`edgephi model compile --target {options.level}` on a machine that has it and copy the build folder"
        )
    with _one_at_a_time(folder):
        found = current_bundle(model_dir, options)  # another process may have made it meanwhile
        if found is None:
            _remove_leftovers(folder)
            _check_disk(model_dir, folder)
            _run_compiler(model_dir, folder, options, progress)
            found = folder, read_bundle(folder)
    return found


def _read_current(folder: Path, model_dir: Path, options: BundleOptions) -> Bundle | None:
    """Return a folder's bundle if it is up to date."""
    try:
        bundle = read_bundle(folder)
    except BundleInvalid:
        return None
    wanted = fingerprint(model_digest(model_dir), options, bundle.compiler_digest)
    is_current = bundle.fingerprint == wanted and compiler_digest() in (None, bundle.compiler_digest)
    return bundle if is_current else None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock beside *folder*: a board has no memory for two compilers, and one bundle is enough."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise CompileFailed(f"{folder.parent} cannot be written ({error.strerror}); free space or permit it") from error
    with lock:
        # Where a file system has no locks two compilers may run; each still puts a whole bundle in place.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what compilers that were killed left beside *folder*: up to gigabytes, and never read by anyone."""
    for pattern in (f".{folder.name}-????????", f".{folder.name}-old-????????"):
        for leftover in folder.parent.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_disk(model_dir: Path, folder: Path) -> None:
    """Refuse what cannot fit before the compiler spends its time; packed weights are as large as the model's."""
    wanted = read_manifest(model_dir).total_bytes
    free = shutil.disk_usage(folder.parent).free
    if free < wanted:
        raise CompileFailed(
            f"{folder.parent} has {free / 2**20:.0f} MiB free and the compiled model takes about "
            f"{wanted / 2**20:.0f} MiB; free some space"
        )


def _run_compiler(model_dir: Path, out: Path, options: BundleOptions, progress: Progress | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TVM_USE_RUNTIME_LIB"}
    command = [
        sys.executable,
        "-m",
        "edgephi.compiler",
        str(model_dir),
        str(out),
        msgspec.json.encode(options).decode(),
    ]
    failure: dict[str, str] | None = None
    # Standard error goes to a file: a pipe that nobody reads would stop the compiler once it is full.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(  # noqa: S603 - our own module
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            report = json.loads(line)
            if isinstance(report, dict):
                failure = report
            elif progress is not None:
                progress(*report)
        process.wait()
        errors.seek(0)
        trace = errors.read().strip()
    if failure is not None:
        raise _COMPILER_ERRORS.get(failure["error"], CompileFailed)(failure["message"])
    if process.returncode:
        last = trace.splitlines()[-1] if trace else "it printed nothing"
        raise CompileFailed(
            f"compiling {model_dir} for {options.level} ended with status {process.returncode} ({last}); "
            "a negative status is a signal, -9 usually too little memory"
        )


def _package_root() -> Path:
    """Return the folder that holds this namespace package's portion."""
    return Path(__file__).resolve().parents[1]
