"""``edgephi model``: list, show, make, fetch, compile and check models."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgephi.cli.compose import POCKET, ModelSource, resolve_model
from edgephi.cli.options import KV_DTYPE, json_option
from edgephi.cli.output import ProgressLine, format_bytes, print_json, print_table
from edgephi.errors import ConfigError, EdgephiError

if TYPE_CHECKING:
    from edgephi.artifact.bundle import Bundle

_FOLDER = click.Path(file_okay=False, path_type=Path)
_SOURCE = click.Path(exists=True, file_okay=False, path_type=Path)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")


@click.group("model", short_help="List, fetch, make, compile and check models.")
def model() -> None:
    """
    List, show, fetch, convert, compile, verify and synthesize models.

    A model is a folder in MLC-LLM's format. Models are named by their folder, by the name they are installed under
    (in $EDGEPHI_MODELS, or the user's data folder), or "pocket", the one inside the package.
    """


@model.command("list", short_help="List installed models.")
@json_option
def list_command(*, as_json: bool) -> None:
    """
    List the packaged model and those in the models folder, with the levels they are compiled for.

    \b
    Example:
      edgephi model list
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.store import list_models

    sources = [ModelSource(installed.name, installed.path) for installed in list_models()]
    with contextlib.suppress(EdgephiError):  # an installation without the packaged model lists the others
        sources.insert(0, ModelSource(POCKET, resolve_model(POCKET).path))
    rows = [_summary(source) for source in sources]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "QUANTIZATION", "SIZE", "CONTEXT", "COMPILED FOR"),
        [
            (
                row["name"],
                row["quantization"] or "-",
                format_bytes(row["size_bytes"]),
                str(row["context_tokens"]),
                ", ".join(row["compiled_for"]) or "-",
            )
            for row in rows
        ],
    )


@model.command("show", short_help="Describe a model.")
@click.argument("name", metavar="MODEL", default=POCKET)
@json_option
def show(*, name: str, as_json: bool) -> None:
    """
    Describe MODEL: its shape, its context, its memory and what it is compiled for.

    \b
    Example:
      edgephi model show phi3-mini-4k
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.config import load_config
    from edgephi.artifact.parameters import phi3_parameters

    source = resolve_model(name)
    config = load_config(source.path)
    details: dict[str, Any] = {
        **_summary(source),
        "path": str(source.path),
        "num_parameters": sum(parameter.num_elements for parameter in phi3_parameters(config)),
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_context_tokens": config.max_position,
        "sliding_window_tokens": config.sliding_window,
        "kv_bytes_per_token_float16": 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim,
        "temperature": config.generation.temperature,
        "top_p": config.generation.top_p,
    }
    if as_json:
        print_json(details)
        return
    details["size_bytes"] = format_bytes(details["size_bytes"])
    details["compiled_for"] = ", ".join(details["compiled_for"]) or "nothing yet"
    for key, value in details.items():
        click.echo(f"{key.removesuffix('_bytes').replace('_', ' '):<28}{'-' if value is None else value}")


@model.command("pull", short_help="Download a model.")
@click.argument("name", metavar="MODEL")
@click.option("--dest", type=_FOLDER, help="Folder to install as.  [default: in the models folder]")
@click.option("--endpoint", metavar="URL", help="Another hub than Hugging Face's.")
@click.option("--revision", metavar="REF", help="Branch, tag or commit.")
@json_option
def pull(*, name: str, dest: Path | None, endpoint: str | None, revision: str | None, as_json: bool) -> None:
    """
    Download MODEL, a short name (phi3-mini-4k, phi3-mini-128k, phi3.5-mini) or a repository (owner/name) in MLC-LLM's
    format, verify it and install it. An interrupted download resumes; a model that is there and intact is left alone.

    \b
    Example:
      edgephi model pull phi3-mini-4k
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.pull import pull_model

    with ProgressLine() as progress:
        path = pull_model(name, dest=dest, endpoint=endpoint, revision=revision, progress=progress)
    _done(path, as_json=as_json, said=f'installed in {path}; next: edgephi run --model {_to_type(path)} "Hello"')


@model.command("convert", short_help="Quantize a Hugging Face checkpoint.")
@click.argument("source", type=_SOURCE)
@click.argument("out", type=_FOLDER, required=False)
@click.option("--quantization", default="q4f16_1", show_default=True, help="q4f16_1, q4f32_1, q4f16_0 or q3f16_g32.")
@click.option("--context", type=click.IntRange(min=1), help="Longest sequence to serve.  [default: the model's]")
@force_option
@json_option
def convert(
    *, source: Path, out: Path | None, quantization: str, context: int | None, force: bool, as_json: bool
) -> None:
    """
    Quantize the Phi-3 checkpoint in SOURCE (config.json, *.safetensors, tokenizer) into the model folder OUT.

    Without OUT it is installed in the models folder under SOURCE's name. q3f16_g32 needs a fifth less memory and
    answers less well; MLC-LLM does not read it.

    \b
    Example:
      edgephi model convert ./Phi-3-mini-4k-instruct
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.convert import convert_checkpoint
    from edgephi.artifact.store import models_dir

    target = models_dir() / source.resolve().name if out is None else out
    with ProgressLine() as progress:
        convert_checkpoint(
            source, target, quantization=quantization, context_window_size=context, progress=progress, force=force
        )
    _done(target, as_json=as_json, said=f"converted into {target}")


@model.command("synth", short_help="Make a model of random weights.")
@click.argument("preset")
@click.argument("out", type=_FOLDER)
@click.option("--quantization", default="q4f16_1", show_default=True, help="q4f16_1 or q3f16_g32.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the weights.")
@force_option
@json_option
def synth(*, preset: str, out: Path, quantization: str, seed: int, force: bool, as_json: bool) -> None:
    """
    Make the model folder OUT with the shapes of PRESET and random weights, to size a device without a download.

    What such a model says is noise; its speed and memory are those of a trained one. Presets: phi3-mini-4k, the real
    model's shape; phi3-small, phi3-hollow, phi3-tiny, phi3-tiny-window and phi3-tiny-longrope for tests.

    \b
    Example:
      edgephi model synth phi3-mini-4k ./sized && edgephi bench --model ./sized
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.synth import synthesize

    with ProgressLine() as progress:
        synthesize(preset, out, quantization=quantization, seed=seed, progress=progress, force=force)
    _done(out, as_json=as_json, said=f"made {out}")


@model.command("compile", short_help="Compile a model for this machine or another.")
@click.argument("name", metavar="MODEL", default=POCKET)
@click.option("--target", metavar="LEVEL", help="Instruction-set level.  [default: the best of this CPU]")
@click.option(
    "--activations", type=click.Choice(["int8", "float32"]), default="int8", show_default=True, help="float32 is slow."
)
@click.option("--kv-dtype", type=KV_DTYPE, default="int8", show_default=True, help="Of cached keys and values.")
@force_option
@json_option
def compile_command(
    *, name: str, target: str | None, activations: str, kv_dtype: str, force: bool, as_json: bool
) -> None:
    """
    Compile MODEL for an instruction-set level. `run` and `serve` do this by themselves for their own machine.

    Levels: armv8.6-i8mm, armv8.2-dotprod, armv8.0, avx512-vnni, avx-vnni, x86-64-v3, x86-64-v2. Compiling for another
    architecture needs zig: pip install 'edgephi[zig]'. It ends with what to copy to that machine.

    \b
    Examples:
      edgephi model compile phi3-mini-4k
      edgephi model compile phi3-mini-4k --target armv8.2-dotprod
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.profile.machine.isa import ISA_LEVELS, host_arch
    from edgephi.runtime.bundles import bundle_folder, current_bundle, ensure_bundle, host_options

    if target is not None and target not in ISA_LEVELS:
        raise ConfigError(f"target is {target!r}; choose one of {', '.join(ISA_LEVELS)}")
    source = resolve_model(name)
    options = host_options(target, activations, kv_dtype)
    is_current = current_bundle(source.path, options) is not None
    if is_current and force:
        shutil.rmtree(bundle_folder(source.path, options))
    with ProgressLine() as progress:
        folder, bundle = ensure_bundle(source.path, options, progress)
    done = "already compiled" if is_current and not force else "compiled"
    remark = "; --force does it again" if is_current and not force else ""
    size = bundle.library.nbytes + bundle.weights.nbytes
    said = f"{done} for {bundle.level}: {folder} ({format_bytes(size)}){remark}"
    if bundle.arch != host_arch():
        said += f"\n{_how_to_move(source.path, folder)}"
    _done(
        folder,
        as_json=as_json,
        said=said,
        level=bundle.level,
        size_bytes=size,
        was_current=is_current and not force,
    )


@model.command("verify", short_help="Check a model's files against their checksums.")
@click.argument("name", metavar="MODEL", default=POCKET)
@json_option
def verify(*, name: str, as_json: bool) -> None:
    """
    Read all of MODEL's weights and compiled libraries and compare them with their checksums.

    \b
    Example:
      edgephi model verify phi3-mini-4k
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    from edgephi.artifact.bundle import verify_bundle
    from edgephi.artifact.manifest import verify_model

    source = resolve_model(name)
    with ProgressLine() as progress:
        manifest = verify_model(source.path, progress)
    bundles = [verify_bundle(folder) for folder in _bundle_folders(source.path)]
    levels = [bundle.level for bundle in bundles]
    compiled = f", compiled for {', '.join(levels)}" if levels else ", not compiled"
    _done(
        source.path,
        as_json=as_json,
        said=f"intact: {len(manifest.shards)} file(s) of weights, {format_bytes(manifest.total_bytes)}{compiled}",
        size_bytes=manifest.total_bytes,
        compiled_for=levels,
    )


def _done(path: Path, *, as_json: bool, said: str, **more: Any) -> None:
    if as_json:
        print_json({"path": str(path), **more})
    else:
        click.echo(said)


def _how_to_move(model_dir: Path, bundle_dir: Path) -> str:
    """Return what to copy to the machine a bundle is for, so that ``run`` and ``serve`` find it there."""
    if model_dir in bundle_dir.parents:
        what, serve = f"{model_dir} without params_shard_*.bin", "edgephi serve --model FOLDER"
    else:
        what, serve = f"{bundle_dir.parent} into ~/.cache/edgephi/build", "edgephi serve"
    return f"on the other machine: copy {what}, install the same version of edgephi, `{serve}`"


def _to_type(path: Path) -> str:
    """Return what a person types for a model in this folder: its name where it is an installed one."""
    from edgephi.artifact.store import models_dir

    return path.name if path.parent == models_dir() else str(path)


def _summary(source: ModelSource) -> dict[str, Any]:
    from edgephi.artifact.config import load_config
    from edgephi.artifact.manifest import read_manifest

    config = load_config(source.path)
    return {
        "name": source.name,
        "quantization": config.quantization,
        "size_bytes": read_manifest(source.path).total_bytes,
        "context_tokens": config.context_window_size,
        "compiled_for": [bundle.level for bundle in _bundles(source.path)],
    }


def _bundles(path: Path) -> list[Bundle]:
    """Return the readable bundles of a model; a damaged one is for ``verify`` to report."""
    from edgephi.artifact.bundle import read_bundle

    found: list[Bundle] = []
    for folder in _bundle_folders(path):
        try:
            found.append(read_bundle(folder))
        except EdgephiError:
            continue
    return found


def _bundle_folders(path: Path) -> list[Path]:
    """Return the folders of a model's bundles, beside it or in the cache."""
    from edgephi.artifact.bundle import BUNDLE_JSON, BundleOptions
    from edgephi.profile.machine.isa import ISA_LEVELS
    from edgephi.runtime.bundles import bundle_folder

    parents = {bundle_folder(path, BundleOptions(level=level)).parent for level in ISA_LEVELS} | {path / "build"}
    return sorted(file.parent for parent in parents for file in parent.glob(f"*/{BUNDLE_JSON}"))
