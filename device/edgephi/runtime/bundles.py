"""Finding the bundle a model needs on this machine, and making it when there is none or it is stale."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import platformdirs

from edgephi.artifact.bundle import BUNDLE_JSON, Bundle, BundleOptions, read_bundle
from edgephi.artifact.digest import compiler_digest, model_digest
from edgephi.errors import BundleInvalid, CompileFailed
from edgephi.profile.isa import best_level, host_arch, host_features

Progress = Callable[[str, int, int], None]


def host_options(level: str | None = None, activations: str = "int8", kv_dtype: str = "float16") -> BundleOptions:
    """
    Return what to compile for on this machine.

    Args:
        level: Instruction-set level; the best this CPU has when None.
        activations: ``int8`` or ``float32``.
        kv_dtype: ``float16`` or ``float32``.

    Raises:
        CpuUnsupported: If no level fits this CPU.
    """
    chosen = level if level is not None else best_level(host_features(), host_arch()).name
    return BundleOptions(level=chosen, activations=activations, kv_dtype=kv_dtype)


def bundle_folder(model_dir: Path, options: BundleOptions) -> Path:
    """
    Return where the bundle of a model lives: ``build/<level>`` in the model's folder.

    A folder inside installed code or one that cannot be written has its bundle in the user's cache instead, under
    a name made of the model's digest.
    """
    beside = model_dir / "build" / options.folder_name
    inside_package = any(parent.name in ("site-packages", "dist-packages") for parent in model_dir.resolve().parents)
    packaged = inside_package or _package_root() in model_dir.resolve().parents
    if (beside / BUNDLE_JSON).is_file() or (not packaged and os.access(model_dir, os.W_OK)):
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
    try:
        bundle = read_bundle(folder)
    except BundleInvalid:
        return None
    compiler = compiler_digest()
    stale = bundle.model_digest != model_digest(model_dir) or compiler not in (None, bundle.compiler_digest)
    return None if stale else (folder, bundle)


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
        ModelInvalid: If the model's files cannot be read.
        BundleInvalid: If what the compiler left cannot be read.
    """
    found = current_bundle(model_dir, options)
    if found is not None:
        return found
    if importlib.util.find_spec("edgephi.compiler") is None:
        raise CompileFailed(
            f"{model_dir} has no bundle for {options.level} and no compiler is installed here; run "
            f"`edgephi model compile --target {options.level}` on a machine that has it and copy the build folder"
        )
    folder = bundle_folder(model_dir, options)
    _run_compiler(model_dir, folder, options, progress)
    return folder, read_bundle(folder)


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
    with subprocess.Popen(  # noqa: S603 - our own module
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if progress is not None:
                label, done, total = json.loads(line)
                progress(label, done, total)
        errors = process.stderr.read()
    if process.returncode:
        message = errors.strip().splitlines()[-1] if errors.strip() else f"status {process.returncode}"
        raise CompileFailed(f"compiling {model_dir} for {options.level} failed: {message}")


def _package_root() -> Path:
    """Return the folder that holds this namespace package's portion."""
    return Path(__file__).resolve().parents[1]
