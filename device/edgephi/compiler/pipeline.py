"""
From a model folder to a bundle: the contents page of the compiler.

    1. read the configuration and check that the kernels can run its shape
    2. pack the weights for the kernels: weights.bin
    3. build the Relax graph and its kernels, compile and link them: model.so
    4. write bundle.json, then move the finished folder into place in one step
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from edgephi.artifact.bundle import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_BYTES,
    KV_DTYPES,
    LIBRARY,
    WEIGHTS,
    Bundle,
    BundleOptions,
    PackedTensor,
    file_digest,
    fingerprint,
    weights_header,
    write_bundle,
)
from edgephi.artifact.config import ModelConfig, load_config
from edgephi.artifact.digest import compiler_digest, model_digest
from edgephi.artifact.manifest import Progress
from edgephi.artifact.quantization import QUANTIZATIONS, Quantization
from edgephi.artifact.weights import WeightStore, open_weights
from edgephi.compiler.kernels.activations import Activations
from edgephi.compiler.kernels.kv_pages import PAGE_SIZE, page_elements
from edgephi.compiler.kernels.matmul_q4 import pack
from edgephi.compiler.link import link_library, linker_command
from edgephi.compiler.phi3 import GraphOptions, Parameter, build_module, check_shapes, inverse_frequency, parameters
from edgephi.compiler.targets import CompileTarget, KernelShape, compile_target
from edgephi.errors import ConfigError, ModelInvalid, UnsupportedModel
from edgephi.profile.machine.isa import ISA_LEVELS, host_arch

_MAX_RENAMES = 100  # ends only if as many processes keep putting bundles in the same place


def compile_model(model_dir: Path, out: Path, options: BundleOptions, progress: Progress | None = None) -> Bundle:
    """
    Compile a model folder into the bundle folder *out*, replacing what is there only when all is done.

    Args:
        model_dir: An MLC-LLM folder with quantized weights.
        out: The bundle's folder; its parents are made.
        options: Level, types and bounds.
        progress: Called while weights are packed, and once with zeros when compiling begins.

    Raises:
        UnsupportedModel: If the kernels cannot run a model of this shape or quantization.
        ModelInvalid: If a weight is missing or of the wrong shape.
        CompileFailed: If the level is unknown, or nothing links for it or linking failed.
        ConfigError: If another option has a value that is not known.
    """
    target = compile_target(options.level)
    level = ISA_LEVELS[options.level]
    linker_command(level.arch, host_arch())  # where there is none, the error comes before minutes of work
    config = load_config(model_dir)
    check_shapes(config)
    quantization = _quantization(model_dir, config)
    _check_options(options)
    graph = GraphOptions(
        activations=Activations(options.activations),
        kv_dtype=options.kv_dtype,
        quantization=quantization,
        max_batch_tokens=options.max_batch_tokens,
    )
    of_model, of_compiler = model_digest(model_dir), compiler_digest()
    assert of_compiler is not None
    mark = fingerprint(of_model, options, of_compiler)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        # First, so that a damaged model is refused before the kernels are compiled.
        packed = pack_weights(model_dir, config, target.kernel, quantization, work / WEIGHTS, mark, progress)
        if progress is not None:
            progress("compiling kernels", 0, 0)
        executable = build_executable(config, target, graph, mark)
        link_library(executable, work / LIBRARY, arch=level.arch, host_arch=host_arch())
        bundle = Bundle(
            format_version=FORMAT_VERSION,
            fingerprint=mark,
            model_digest=of_model,
            compiler_digest=of_compiler,
            level=level.name,
            arch=level.arch,
            required_features=tuple(sorted(level.required_features)),
            compiler={"apache-tvm": tvm.__version__, "llvm": str(tvm.target.codegen.llvm_version_major())},
            quantization=config.quantization or "",
            activations=options.activations,
            kv_dtype=options.kv_dtype,
            page_size=PAGE_SIZE,
            page_elements=page_elements(options.kv_dtype, config.head_dim),
            max_batch_tokens=options.max_batch_tokens,
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            context_tokens=config.context_window_size,
            library=file_digest(work / LIBRARY),
            weights=file_digest(work / WEIGHTS),
            parameters=packed,
        )
        write_bundle(work, bundle)
        _replace_folder(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return bundle


def build_executable(
    config: ModelConfig, target: CompileTarget, graph: GraphOptions, mark: str
) -> tvm.runtime.Executable:
    """Compile the graph for *target*; ``_metadata`` of the result carries the fingerprint *mark*."""
    module = build_module(config, target, graph, json.dumps({"fingerprint": mark}))
    with tvm.transform.PassContext(opt_level=3, config={"tirx.enable_debug": False}):
        return relax.build(module, target=target.tvm_target())


def pack_weights(
    model_dir: Path,
    config: ModelConfig,
    shape: KernelShape,
    quantization: Quantization,
    out: Path,
    mark: str,
    progress: Progress | None,
) -> tuple[PackedTensor, ...]:
    """
    Write weights.bin: every parameter of the graph in its order, 64-byte aligned.

    Raises:
        ModelInvalid: If a weight is missing or has another shape than the configuration says.
    """
    specs = parameters(config, shape, quantization)
    total = sum(_nbytes(spec) for spec in specs)
    packed: list[PackedTensor] = []
    with open_weights(model_dir) as store, out.open("wb") as file:
        file.write(weights_header(mark))
        for spec, array in zip(specs, _packed_arrays(store, config, shape, quantization, specs), strict=True):
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise ModelInvalid(
                    f"{model_dir}: weight {spec.name} is {array.dtype} {array.shape}, "
                    f"the configuration needs {spec.dtype} {spec.shape}"
                )
            offset = _pad(file)
            array.tofile(file)
            packed.append(
                PackedTensor(name=spec.name, shape=spec.shape, dtype=spec.dtype, offset=offset, nbytes=array.nbytes)
            )
            if progress is not None:
                progress("packing weights", file.tell() - HEADER_BYTES, total)
        file.flush()
        os.fsync(file.fileno())
    return tuple(packed)


def _packed_arrays(
    store: WeightStore,
    config: ModelConfig,
    shape: KernelShape,
    quantization: Quantization,
    specs: tuple[Parameter, ...],
) -> Iterator[npt.NDArray[np.generic]]:
    """Yield each parameter's contents in the order of *specs*."""
    for spec in specs:
        name = spec.name
        if name == "rope.inverse_frequency":
            yield inverse_frequency(config)
        elif name.endswith(".w"):
            matrix = store.matrix(name.removesuffix(".w"))
            bits = quantization.bits(name)
            if matrix.bits != bits:
                raise ModelInvalid(f"weight {name} has {matrix.bits} bits; {quantization.name} has {bits}")
            yield pack(matrix.unpack_codes(), matrix.scales_nk(), shape, bits)
        elif name.startswith("transformer.embd."):
            yield np.ascontiguousarray(store.get(name))
        else:
            yield np.ascontiguousarray(store.get(name).astype(np.float32))


def _check_options(options: BundleOptions) -> None:
    for name, value, known in (
        ("activations", options.activations, [kind.value for kind in Activations]),
        ("kv_dtype", options.kv_dtype, list(KV_DTYPES)),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    if options.max_batch_tokens < 1:
        raise ConfigError(f"max_batch_tokens is {options.max_batch_tokens}; must be at least 1")


def _quantization(model_dir: Path, config: ModelConfig) -> Quantization:
    known = {quantization.name: quantization for quantization in QUANTIZATIONS}
    if config.quantization not in known:
        raise UnsupportedModel(
            f"{model_dir} has quantization {config.quantization or 'none'}; choose one of {', '.join(known)}, "
            "or convert a Hugging Face checkpoint with `edgephi model convert`"
        )
    return known[config.quantization]


def _nbytes(spec: Parameter) -> int:
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize


def _pad(file: BinaryIO) -> int:
    """Move to the next aligned offset and return it."""
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    return file.tell()


def _replace_folder(work: Path, out: Path) -> None:
    """Put *work* where *out* is or will be; a process that has the old files mapped keeps them."""
    work.chmod(0o755)
    for _ in range(_MAX_RENAMES):
        with contextlib.suppress(OSError):  # a folder with files in it cannot be renamed over
            work.rename(out)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        # Another process that puts its bundle here at the same time may have moved the old one already.
        with contextlib.suppress(FileNotFoundError):
            out.rename(old / out.name)
        shutil.rmtree(old, ignore_errors=True)
    work.rename(out)
