"""
What a model folder's configuration says, whether MLC-LLM or Hugging Face wrote it.

Owns the checks that make a configuration fit the one architecture that is run, ``phi3``. Knows no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgephi.artifact.fields import Fields, read_fields
from edgephi.errors import ModelInvalid, ModelNotFound, UnsupportedModel

MLC_CONFIG = "mlc-chat-config.json"
HF_CONFIG = "config.json"
HF_GENERATION_CONFIG = "generation_config.json"

ARCHITECTURE = "phi3"
GROUP_SIZE = 32
MAX_EXTENT = 1 << 20  # wider than any Phi-3 by far; keeps products of extents within 64 bits
MAX_LAYERS = 1024
MAX_POSITION = 1 << 24
MAX_PREFILL_CHUNK = 8192

# Phi-3-mini-4k was trained with this window. MLC-LLM's configuration has no field for it.
# Source: microsoft/Phi-3-mini-4k-instruct, config.json.
PHI3_MINI_4K_WINDOW = 2047
PHI3_MINI_4K_POSITIONS = 4096
PHI3_MINI_HIDDEN = 3072


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """
    Longrope: per-frequency divisors of the rotary embedding.

    Attributes:
        long_factor: head_dim / 2 divisors for sequences longer than ``original_max_position``.
        short_factor: head_dim / 2 divisors for all others.
        original_max_position: Context the model was first trained with, in tokens.
    """

    long_factor: tuple[float, ...]
    short_factor: tuple[float, ...]
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """
    Sampling values the model's publisher recommends; neutral where the files name none.

    Attributes:
        temperature: At least 0.
        top_p: Above 0, at most 1.
        repetition_penalty: Above 0; 1 is neutral.
        presence_penalty: -2 to 2; 0 is neutral.
        frequency_penalty: -2 to 2; 0 is neutral.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """
    One Phi-3: its shapes, its position handling, its tokens and its defaults.

    Attributes:
        hidden_size: Width of the residual stream; num_heads * head_dim.
        intermediate_size: Width of the gated MLP (the fused gate and up projection has twice as many rows).
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides num_heads.
        head_dim: Width of one head; even.
        vocab_size: Rows of the embedding and of the output projection.
        rms_norm_eps: Added to the mean square in RMSNorm.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Longrope factors, None where positions are not rescaled.
        max_position: Longest sequence the weights were trained for, in tokens.
        context_window_size: Longest sequence to serve, in tokens. With ``rope_scaling`` it is at most
            ``original_max_position``: past that the long factors must apply to all positions, also to those
            whose keys are already cached, so a longer context needs a recompute. ``max_position`` stays as published.
        sliding_window: A token sees itself and this many minus one before it; None where it sees all. 2047 for
            Phi-3-mini-4k, also when read from MLC-LLM's file, which does not say so. A window that no sequence can
            exceed is None.
        prefill_chunk_size: Most prompt tokens the model's files suggest computing at once.
        quantization: MLC-LLM's name, such as ``q4f16_1``; None for a Hugging Face folder.
        bos_token_id: Put once before the prompt.
        eos_token_ids: Any of them ends the answer; ascending by appearance, no duplicates, all below vocab_size.
        pad_token_id: None where the files name none.
        generation: Recommended sampling values.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position: int
    context_window_size: int
    prefill_chunk_size: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    quantization: str | None = None
    pad_token_id: int | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def load_config(model_dir: Path) -> ModelConfig:
    """
    Read a model folder's configuration: ``mlc-chat-config.json``, else Hugging Face's ``config.json``.

    Raises:
        ModelNotFound: If the folder holds neither file.
        UnsupportedModel: If it describes an architecture or a variant that is not run.
        ModelInvalid: If a field is missing, of the wrong type or out of bounds.
    """
    if (model_dir / MLC_CONFIG).is_file():
        return _from_mlc(read_fields(model_dir / MLC_CONFIG))
    if (model_dir / HF_CONFIG).is_file():
        config = read_fields(model_dir / HF_CONFIG)
        generation_path = model_dir / HF_GENERATION_CONFIG
        generation = read_fields(generation_path) if generation_path.is_file() else config
        return _from_hf(config, generation)
    raise ModelNotFound(f"{model_dir} holds neither {MLC_CONFIG} nor {HF_CONFIG}; name a folder that holds a model")


def infer_sliding_window(*, hidden_size: int, max_position: int, rope_scaling: RopeScaling | None) -> int | None:
    """Return the window of a model whose files do not name one: 2047 for Phi-3-mini-4k, None for all others."""
    is_mini_4k = hidden_size == PHI3_MINI_HIDDEN and max_position == PHI3_MINI_4K_POSITIONS and rope_scaling is None
    return PHI3_MINI_4K_WINDOW if is_mini_4k else None


def _from_mlc(root: Fields) -> ModelConfig:
    """Read MLC-LLM's chat configuration."""
    model = root.child("model_config")
    stated = root.integer("context_window_size", low=-1, high=MAX_POSITION, default=-1)
    max_position = model.integer(
        "max_position_embeddings", low=1, high=MAX_POSITION, default=stated if stated > 0 else None
    )
    architecture = root.text("model_type")
    shapes = _Shapes(model, architecture=architecture, max_position=max_position)
    window: int | None = None
    if model.has("sliding_window"):
        window = model.integer("sliding_window", low=1, high=MAX_POSITION)
    elif root.integer("sliding_window_size", low=-1, high=MAX_POSITION, default=-1) > 0:
        window = root.integer("sliding_window_size", low=1, high=MAX_POSITION)
    else:
        window = infer_sliding_window(
            hidden_size=shapes.hidden_size, max_position=max_position, rope_scaling=shapes.rope_scaling
        )
    tokens = _token_ids(root, "eos_token_id", shapes.vocab_size) if root.has("eos_token_id") else ()
    if root.has("conv_template") and isinstance(root.values["conv_template"], dict):
        template = root.child("conv_template")
        if template.has("stop_token_ids"):
            # MLC-LLM writes Phi-3-mini's ids whatever the vocabulary, so ids beyond it are expected here.
            stops = template.integers("stop_token_ids", low=0, high=MAX_EXTENT)
            tokens += tuple(token for token in stops if token < shapes.vocab_size)
    return shapes.config(
        context=stated if stated > 0 else max_position,
        window=window,
        prefill_chunk=root.integer("prefill_chunk_size", low=-1, high=MAX_POSITION, default=-1),
        quantization=root.text("quantization"),
        tokens=root,
        eos_token_ids=tokens,
        generation=root,
    )


def _from_hf(config: Fields, generation: Fields) -> ModelConfig:
    """Read Hugging Face's two configuration files; token ids of the second win."""
    max_position = config.integer("max_position_embeddings", low=1, high=MAX_POSITION)
    shapes = _Shapes(config, architecture=config.text("model_type"), max_position=max_position)
    window = (
        config.integer("sliding_window", low=1, high=MAX_POSITION)
        if config.has("sliding_window")
        else infer_sliding_window(
            hidden_size=shapes.hidden_size, max_position=max_position, rope_scaling=shapes.rope_scaling
        )
    )
    eos_source = generation if generation.has("eos_token_id") else config
    return shapes.config(
        context=max_position,
        window=window,
        prefill_chunk=-1,
        quantization=None,
        tokens=generation if generation.has("bos_token_id") else config,
        eos_token_ids=_token_ids(eos_source, "eos_token_id", shapes.vocab_size),
        generation=generation,
    )


class _Shapes:
    """The fields both formats share, read and checked once; ``config`` adds what they do not share."""

    def __init__(self, model: Fields, *, architecture: str, max_position: int) -> None:
        if architecture != ARCHITECTURE:
            raise UnsupportedModel(
                f"{model.file}: model_type is {architecture!r}; only {ARCHITECTURE!r} (Phi-3-mini, Phi-3.5-mini) is run"
            )
        self.file = model.file
        self.hidden_size = model.integer("hidden_size", low=GROUP_SIZE, high=MAX_EXTENT)
        self.intermediate_size = model.integer("intermediate_size", low=GROUP_SIZE, high=MAX_EXTENT)
        self.num_layers = model.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
        self.num_heads = model.integer("num_attention_heads", low=1, high=self.hidden_size)
        # MLC-LLM writes 0 for "same as the query heads" and "derive it".
        self.num_kv_heads = model.integer("num_key_value_heads", low=0, high=self.num_heads, default=0)
        self.num_kv_heads = self.num_kv_heads or self.num_heads
        self.head_dim = model.integer("head_dim", low=0, high=self.hidden_size, default=0)
        self.head_dim = self.head_dim or self.hidden_size // self.num_heads
        self.vocab_size = model.integer("vocab_size", low=1, high=MAX_EXTENT)
        self.rms_norm_eps = model.number("rms_norm_eps", low=0.0, high=1.0)
        self.max_position = max_position
        self._check_extents()
        self._check_variants(model)
        self.rope_theta = _rope_theta(model)
        self.rope_scaling = _rope_scaling(model, self.head_dim)

    def _check_extents(self) -> None:
        for name, extent in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            if extent % GROUP_SIZE:
                raise UnsupportedModel(f"{self.file}: {name} is {extent}; must be a multiple of {GROUP_SIZE}")
        if self.num_heads * self.head_dim != self.hidden_size or self.head_dim % 2:
            raise UnsupportedModel(
                f"{self.file}: {self.num_heads} heads of {self.head_dim} do not make hidden_size {self.hidden_size} "
                "(head_dim must be even)"
            )
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                f"{self.file}: num_key_value_heads is {self.num_kv_heads}; must divide the {self.num_heads} heads"
            )

    def _check_variants(self, model: Fields) -> None:
        if model.boolean("tie_word_embeddings", default=False):
            raise UnsupportedModel(f"{self.file}: tie_word_embeddings is true; Phi-3-mini has its own output weights")
        rope = model.child("rope_parameters") if model.has("rope_parameters") else model
        for source in (model, rope):
            rotary = source.number("partial_rotary_factor", low=0.0, high=1.0, default=1.0)
            if rotary != 1.0:
                raise UnsupportedModel(f"{self.file}: partial_rotary_factor is {rotary:g}; only 1 is run")

    def config(
        self,
        *,
        context: int,
        window: int | None,
        prefill_chunk: int,
        quantization: str | None,
        tokens: Fields,
        eos_token_ids: tuple[int, ...],
        generation: Fields,
    ) -> ModelConfig:
        """Return the whole configuration, its context and window reduced to what can be used."""
        limit = self.rope_scaling.original_max_position if self.rope_scaling else self.max_position
        context = min(context, self.max_position, limit)
        default_chunk = min(context, MAX_PREFILL_CHUNK)
        highest = self.vocab_size - 1
        pad = tokens.integer("pad_token_id", low=-1, high=highest, default=-1)
        if not eos_token_ids:
            raise ModelInvalid(f"{self.file}: eos_token_id is missing; without one an answer would never end")
        return ModelConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            max_position=self.max_position,
            context_window_size=context,
            sliding_window=window if window is not None and window < self.max_position else None,
            prefill_chunk_size=min(prefill_chunk, context) if prefill_chunk > 0 else default_chunk,
            quantization=quantization,
            bos_token_id=tokens.integer("bos_token_id", low=0, high=highest, default=min(1, highest)),
            eos_token_ids=tuple(dict.fromkeys(eos_token_ids)),
            pad_token_id=pad if pad >= 0 else None,
            generation=_generation(generation),
        )


def _token_ids(source: Fields, key: str, vocab_size: int) -> tuple[int, ...]:
    return source.integers(key, low=0, high=vocab_size - 1)


def _rope_theta(model: Fields) -> float:
    """Return the base: at top level under either name, or in ``rope_parameters`` (transformers 5)."""
    sources = [model, model.child("rope_parameters")] if model.has("rope_parameters") else [model]
    for source in sources:
        for key in ("rope_theta", "position_embedding_base"):
            # MLC-LLM's 0 means "not given".
            theta = source.number(key, low=0.0, high=1e12, default=0.0)
            if theta > 0:
                return theta
    return 10000.0


def _rope_scaling(model: Fields, head_dim: int) -> RopeScaling | None:
    """Return the longrope factors, under any of the names used for them; None for plain positions."""
    key = "rope_scaling" if model.has("rope_scaling") else "rope_parameters"
    if not model.has(key):
        return None
    scaling = model.child(key)
    kind = scaling.text("rope_type", default=scaling.text("type", default="default"))
    if kind == "default":
        return None
    if kind not in ("longrope", "su"):
        raise UnsupportedModel(f"{model.file}: {key} type is {kind!r}; only 'longrope' (formerly 'su') is run")
    source = scaling if scaling.has("original_max_position_embeddings") else model
    return RopeScaling(
        long_factor=scaling.numbers("long_factor", count=head_dim // 2),
        short_factor=scaling.numbers("short_factor", count=head_dim // 2),
        original_max_position=source.integer("original_max_position_embeddings", low=1, high=MAX_POSITION),
    )


def _generation(source: Fields) -> GenerationDefaults:
    neutral = GenerationDefaults()
    top_p = source.number("top_p", low=0.0, high=1.0, default=neutral.top_p)
    if top_p == 0:
        raise source.invalid("top_p", "a number above 0")
    return GenerationDefaults(
        temperature=source.number("temperature", low=0.0, high=100.0, default=neutral.temperature),
        top_p=top_p,
        repetition_penalty=source.number(
            "repetition_penalty", low=0.01, high=100.0, default=neutral.repetition_penalty
        ),
        presence_penalty=source.number("presence_penalty", low=-2.0, high=2.0, default=neutral.presence_penalty),
        frequency_penalty=source.number("frequency_penalty", low=-2.0, high=2.0, default=neutral.frequency_penalty),
    )
