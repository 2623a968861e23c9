"""Models shared by the tests of the artifact layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgephi.artifact.convert import convert_checkpoint
from edgephi.artifact.synth import synthesize


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the checkpoint and the weight files that MLC-LLM's own converter wrote."""
    return Path(__file__).parent.parent / "golden" / "mlc-phi3-tiny"


@pytest.fixture(scope="session")
def converted(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the golden checkpoint converted to every format, by quantization. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("converted")
    return {
        name: convert_checkpoint(golden / "hf", root / name, quantization=name)
        for name in ("q4f16_1", "q4f32_1", "q4f16_0", "q3f16_g32")
    }


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a synthetic tiny model. Not to be changed by a test."""
    return synthesize("phi3-tiny", tmp_path_factory.mktemp("synthetic") / "phi3-tiny")
