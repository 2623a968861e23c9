"""
What planning needs to know of a model, whether it is on this machine or not.

Owns where the facts come from: a compiled bundle, else a folder's configuration, else a preset of ``artifact.synth``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgephi.errors import CpuUnsupported, ModelNotFound
from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype

if TYPE_CHECKING:
    from edgephi.artifact.bundle import Bundle
    from edgephi.artifact.config import ModelConfig

PHI3_MINI = "phi3-mini-4k"
"""What is planned for where no model is named; it need not be installed."""
PULLED_QUANTIZATION = "q4f16_1"
"""What `edgephi model pull` fetches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """
    A model to plan for.

    Attributes:
        facts: In the quantization that is planned.
        alternatives: In others, which a converted checkpoint would have.
        path: Its folder; None where it is not here.
        stored_quantization: Format of the weights in that folder; None where there are none.
        bundle: What was compiled of it for this machine, if that is up to date.
    """

    facts: ModelFacts
    alternatives: tuple[ModelFacts, ...]
    path: Path | None = None
    stored_quantization: str | None = None
    bundle: Bundle | None = None

    @property
    def is_here(self) -> bool:
        """Whether it can be loaded in the quantization that is planned."""
        return self.path is not None and self.stored_quantization == self.facts.quantization


def find_model_facts(
    name_or_path: str, quantization: str | None = None, kv_dtype: KvDtype = KvDtype.INT8
) -> PlannedModel:
    """
    Find a model, installed or not.

    Args:
        name_or_path: Name of an installed model, a folder, ``pocket``, or a preset's name.
        quantization: What is planned instead of what the model's files have; None for that, or for ``q4f16_1``, which
            is what is downloaded, where there are no files.
        kv_dtype: For which a compiled bundle is looked for.

    Raises:
        ModelNotFound: If there is no such model.
        ModelInvalid: If its files cannot be used.
        UnsupportedModel: If it has, or was asked in, an unknown quantization.
    """
    from edgephi.artifact.config import load_config
    from edgephi.artifact.synth import PRESETS, SYNTHETIC_QUANTIZATIONS
    from edgephi.cli.compose import resolve_model

    path: Path | None = None
    try:
        source = resolve_model(name_or_path)
        name, path, config = source.name, source.path, load_config(source.path)
    except ModelNotFound as error:
        if name_or_path not in PRESETS:
            raise ModelNotFound(f"{error}; shapes known without a model: {', '.join(PRESETS)}") from error
        name, config = name_or_path, PRESETS[name_or_path]
    own = config.quantization or PULLED_QUANTIZATION
    chosen = own if quantization is None else quantization
    facts = facts_of_config(name, config, chosen)
    bundle = None
    if path is not None and chosen == config.quantization:
        bundle = _current_bundle(path, kv_dtype)
        if bundle is not None:
            facts = facts_of_bundle(facts, bundle)
    return PlannedModel(
        facts=facts,
        alternatives=tuple(
            facts_of_config(name, config, other) for other in SYNTHETIC_QUANTIZATIONS if other != chosen
        ),
        path=path,
        stored_quantization=None if path is None else config.quantization,
        bundle=bundle,
    )


def facts_of_config(name: str, config: ModelConfig, quantization: str) -> ModelFacts:
    """
    Return what planning needs of a model that was not compiled, exact to the byte.

    Raises:
        UnsupportedModel: If there is no such quantization.
    """
    from edgephi.artifact.bundle import BundleOptions
    from edgephi.artifact.packed_sizes import PAGE_TOKENS, kv_bytes_per_token, macs_per_token, packed_sizes
    from edgephi.artifact.quantization import find_quantization

    sizes = packed_sizes(config, find_quantization(quantization))
    return ModelFacts(
        name=name,
        quantization=quantization,
        weights_bytes=sizes.file_bytes,
        step_weight_bytes=sizes.step_bytes,
        kv_bytes_per_token={kind: kv_bytes_per_token(config, kind.value) for kind in KvDtype},
        context_tokens=config.context_window_size,
        page_tokens=PAGE_TOKENS,
        max_batch_tokens=BundleOptions(level="any").max_batch_tokens,
        macs_per_token=macs_per_token(config),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        num_layers=config.num_layers,
        window_tokens=config.sliding_window,
    )


def facts_of_bundle(facts: ModelFacts, bundle: Bundle) -> ModelFacts:
    """Return *facts* with what compiling fixed."""
    from edgephi.artifact.packed_sizes import bundle_sizes

    sizes = bundle_sizes(bundle)
    return dataclasses.replace(
        facts,
        weights_bytes=sizes.file_bytes,
        step_weight_bytes=sizes.step_bytes,
        context_tokens=bundle.context_tokens,
        page_tokens=bundle.page_size,
        max_batch_tokens=bundle.max_batch_tokens,
    )


def _current_bundle(path: Path, kv_dtype: KvDtype) -> Bundle | None:
    """Return what was compiled of a model for this machine, if that is up to date; None as well for no weights."""
    from edgephi.runtime.bundles import current_bundle, host_options

    try:
        found = current_bundle(path, host_options(kv_dtype=kv_dtype.value))
    except (ModelNotFound, CpuUnsupported):
        return None
    return None if found is None else found[1]
