"""
edgephi-pocket: the small model inside the package, which turns one spoken home or robot command into JSON.

Owns the model's folder, its schema, its data generator and its training. Nothing here is imported by the engine.
"""

from __future__ import annotations

from pathlib import Path

from edgephi.pocket.schema import INTENTS, Field, Intent, intent_named, problems

MODEL_NAME = "edgephi-pocket"

__all__ = ["INTENTS", "MODEL_NAME", "Field", "Intent", "intent_named", "model_dir", "problems"]


def model_dir() -> Path:
    """Return the folder of the packaged model, in MLC-LLM's form."""
    return Path(__file__).parent / "model"
