"""
How much memory a server takes: the items of a plan's memory, predicted from the model and the load.

Owns the law and its constants; ``python -m tests.bench.memory`` measures servers against it. Peak resident memory is

    weights    the mapped file as a whole; until every row of the embedding was looked up it is up to 2.5 % less
    kv         pages for batch x context tokens; the system commits each when it is first written, and keeps it
    workspace  activations: TVM reserves buffers for the most rows of a step once, and rows are committed when first
               used, so rows of the largest step x bytes of a row; and logits, which have a buffer for each number of
               rows that was ever asked for (see :func:`workspace_bytes`)
    process    interpreter, libraries, the network front, the tokenizer and the compiled library, and what each
               request holds besides its pages

and a reserve for what is not predicted is kept free above them.
"""

from __future__ import annotations

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype, PlanMemory

MIB = 1 << 20

MAX_DRAFT_TOKENS = 8
"""Guessed tokens a server checks beside a request's next one, as ``edgephi serve`` does by default."""

MIN_RESERVE_BYTES = 64 * MIB
RESERVE_SHARE = 0.03

_GROUP = 32  # activations of a scale, in the int8 form
_FLOAT_BYTES = 4
# Logits of a step stay alive until the next step's are there, so two buffers of one size are in use.
_LOGIT_BUFFERS = 2

# What `python -m tests.bench.memory` measures of a server whose model takes next to nothing (edgephi-pocket, x86_64,
# Python 3.11), front and engine added up, less pages, activations, logits and tokenizer. Libraries that both map are
# counted twice, as the kernel's peaks of processes are. It grows with what a server imports: then measure again.
_PROCESS_BYTES = 174 * MIB
# The tokenizer's tables: 25 MiB more of its own with a vocabulary of 32,064 than with one of 2,048.
_TOKENIZER_BYTES_PER_TOKEN = 870
# A stream's connection, text and page lists, and its sampler's arrays over the vocabulary.
_REQUEST_BYTES = MIB // 4


def plan_memory(
    model: ModelFacts,
    *,
    kv_dtype: KvDtype,
    batch: int,
    context_tokens: int,
    chunk_tokens: int,
    budget_bytes: int,
    reserve_bytes: int | None = None,
    max_draft_tokens: int = MAX_DRAFT_TOKENS,
) -> PlanMemory:
    """
    Predict the memory of a server.

    Args:
        model: What it serves.
        kv_dtype: Element type of keys and values; ``model.kv_bytes_per_token`` has it.
        batch: Requests at once.
        context_tokens: Tokens of each; whole pages are counted.
        chunk_tokens: Most prompt tokens in a step.
        budget_bytes: Carried into the result.
        reserve_bytes: Kept free; 3 % of the rest but at least 64 MiB when None.
        max_draft_tokens: Guessed tokens a request may have in a step.
    """
    items = {
        "weights_bytes": model.weights_bytes,
        "kv_bytes": num_pages(model, batch=batch, context_tokens=context_tokens) * page_bytes(model, kv_dtype),
        "workspace_bytes": workspace_bytes(
            model, batch=batch, chunk_tokens=chunk_tokens, max_draft_tokens=max_draft_tokens
        ),
        "process_bytes": process_bytes(model, batch=batch),
    }
    if reserve_bytes is None:
        reserve_bytes = max(MIN_RESERVE_BYTES, int(RESERVE_SHARE * sum(items.values())))
    return PlanMemory(**items, reserve_bytes=reserve_bytes, budget_bytes=budget_bytes)


def num_pages(model: ModelFacts, *, batch: int, context_tokens: int) -> int:
    """Return the pages of a pool in which *batch* requests of *context_tokens* fit at once."""
    return batch * -(-context_tokens // model.page_tokens)


def page_bytes(model: ModelFacts, kv_dtype: KvDtype) -> int:
    """Return the bytes of a page in all layers and heads."""
    return model.kv_bytes_per_token[kv_dtype] * model.page_tokens


def workspace_bytes(model: ModelFacts, *, batch: int, chunk_tokens: int, max_draft_tokens: int) -> int:
    """
    Return the bytes of activations and logits that stay committed after every kind of step was run.

    The rows of activations are those of the widest step: a chunk beside decodes, or all decodes with their guesses.
    Logits have buffers for powers of two of rows only (the backend pads), two of each.
    """
    decode_rows = min(batch * (1 + max_draft_tokens), model.max_batch_tokens)
    rows = min(max(chunk_tokens + batch - 1, decode_rows), model.max_batch_tokens)
    logit_rows = sum(1 << n for n in range((decode_rows - 1).bit_length() + 1))
    logits = _LOGIT_BUFFERS * logit_rows * model.vocab_size * _FLOAT_BYTES
    return rows * row_bytes(model) + logits


def row_bytes(model: ModelFacts) -> int:
    """
    Return the bytes of one row in the buffers that TVM's memory planning keeps for activations.

    ``relax.transform.StaticPlanBlockMemory`` shares them between kernels and leaves, for compiler/phi3.py: the
    residual stream, both rotary tables, int8 activations with two scales a group, and two wide buffers that take turns:
    one as wide as gate and up together, one as wide as queries, keys and values.
    """
    qkv = 3 * model.num_heads * model.head_dim  # an upper bound where heads share keys and values
    widest = max(model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim)
    floats = model.hidden_size + model.head_dim + 2 * widest // _GROUP + 2 * model.intermediate_size + qkv
    return _FLOAT_BYTES * floats + widest


def process_bytes(model: ModelFacts, *, batch: int) -> int:
    """Return the bytes of the server itself with *batch* streams open."""
    return _PROCESS_BYTES + model.vocab_size * _TOKENIZER_BYTES_PER_TOKEN + batch * _REQUEST_BYTES
