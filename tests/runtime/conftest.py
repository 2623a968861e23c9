"""
Models compiled once for all runtime tests, and batches for them.

One child process compiles every bundle, so that the compiler is started once and this process serves as a real one
does: with TVM's runtime only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgephi.artifact.bundle import BundleOptions
from edgephi.artifact.convert import convert_checkpoint
from edgephi.engine.backend import ForwardBatch
from edgephi.profile.machine.isa import host_arch, host_features, supported_levels
from edgephi.runtime import LoadedModel, RuntimeOptions, load_model
from edgephi.runtime.bundles import bundle_folder

Load = Callable[..., LoadedModel]
MakeBatch = Callable[..., ForwardBatch]

QUANTIZATIONS = ("q4f32_1", "q4f16_1", "q4f16_0")
HF_CASES = ("plain", "grouped", "window", "longrope")

_COMPILE_ALL = """
import json, sys
from pathlib import Path
from edgephi.artifact.bundle import BundleOptions
from edgephi.compiler.pipeline import compile_model
for model, out, options in json.load(sys.stdin):
    compile_model(Path(model), Path(out), BundleOptions(**options))
"""


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden models and logits."""
    return Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def models(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """
    Compiled model folders by name; not to be changed by a test.

    The three 4-bit quantizations of the golden checkpoint and the one of 3 bits, the two that MLC-LLM's own converter
    wrote (``mlc-...``), and the Hugging Face cases (``hf-...``).
    """
    root = tmp_path_factory.mktemp("models")
    tiny = golden / "mlc-phi3-tiny"
    wanted: list[tuple[Path, BundleOptions]] = []
    best, *lower = (level.name for level in supported_levels(host_features(), host_arch()))
    exact = BundleOptions(level=best, activations="float32", kv_dtype="float32")
    for name in QUANTIZATIONS:
        folder = convert_checkpoint(tiny / "hf", root / name, quantization=name)
        wanted.append((folder, exact))
    three_bits = convert_checkpoint(tiny / "hf", root / "q3f16_g32", quantization="q3f16_g32")
    wanted += [(three_bits, exact), *((three_bits, BundleOptions(level=level)) for level in (best, *lower))]
    for name in ("q4f32_1", "q4f16_1"):
        wanted += [(root / name, BundleOptions(level=best, kv_dtype=kv_dtype)) for kv_dtype in ("int8", "float16")]
    wanted += [(root / "q4f16_1", BundleOptions(level=level)) for level in lower]
    for name in ("q4f32_1", "q4f16_1"):
        folder = root / f"mlc-{name}"
        shutil.copytree(tiny / name, folder)
        shutil.copy(root / name / "mlc-chat-config.json", folder)
        wanted.append((folder, exact))
    for case in HF_CASES:
        wanted.append((convert_checkpoint(golden / "hf-phi3" / case, root / f"hf-{case}"), exact))
    wanted.append((root / "hf-plain", BundleOptions(level=best)))
    jobs = [(str(model), str(bundle_folder(model, options)), msgspec.to_builtins(options)) for model, options in wanted]
    subprocess.run([sys.executable, "-c", _COMPILE_ALL], input=json.dumps(jobs), text=True, check=True, timeout=300)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="session")
def load(models: dict[str, Path]) -> Iterator[Load]:
    """Load a compiled model by its name, once for each set of options; options are those of RuntimeOptions."""
    loaded: dict[tuple[str, RuntimeOptions], LoadedModel] = {}

    def load_once(name: str, **options: object) -> LoadedModel:
        key = name, RuntimeOptions(**options)  # type: ignore[arg-type] # a test's own keywords
        if key not in loaded:
            loaded[key] = load_model(models[name], key[1])
        return loaded[key]

    yield load_once
    for model in loaded.values():
        model.close()


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """
    Build a batch from ``(tokens, start, pages)`` of each sequence.

    Tokens are the new ones, from position *start* of a sequence whose history lies in *pages*; ``logit_rows`` are
    all rows unless given.
    """

    def make(
        *sequences: tuple[Sequence[int], int, Sequence[int]],
        page_size: int = 16,
        logit_rows: Sequence[int] | None = None,
    ) -> ForwardBatch:
        lengths = [len(tokens) for tokens, _, _ in sequences]
        table = np.zeros((len(sequences), max(len(pages) for _, _, pages in sequences)), np.int32)
        positions, slots = [], []
        for index, (tokens, start, pages) in enumerate(sequences):
            table[index, : len(pages)] = pages
            position = np.arange(start, start + len(tokens), dtype=np.int32)
            positions.append(position)
            slots.append(table[index, position // page_size] * page_size + position % page_size)
        rows = range(sum(lengths)) if logit_rows is None else logit_rows
        return ForwardBatch(
            tokens=np.concatenate([np.asarray(tokens, np.int32) for tokens, _, _ in sequences]),
            positions=np.concatenate(positions),
            slots=np.concatenate(slots).astype(np.int32),
            row_start=np.cumsum([0, *lengths], dtype=np.int32),
            block_table=table,
            kv_len=np.array([start + len(tokens) for tokens, start, _ in sequences], np.int32),
            logit_rows=np.array(rows, np.int32),
        )

    return make
