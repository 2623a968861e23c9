"""Engine backends: what turns a batch of tokens into logits. ``load_model`` gives the one for real models."""

from edgephi.runtime.model import LoadedModel, RuntimeOptions, load_model

__all__ = ["LoadedModel", "RuntimeOptions", "load_model"]
