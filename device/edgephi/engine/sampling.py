"""
Draws the next token of one request from its row of logits.

Owns the random stream and the token counts that penalties need. Knows no batch: what is drawn depends only on the
request, its own tokens and its own logits, never on companions.

Cost at a vocabulary of 32,064: a few passes over the row, measured by ``make overhead``. Only top_p sorts, and only the
most likely tokens, in growing helpings until their mass is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgephi.engine.backend import F32Array
from edgephi.engine.request import SamplingParams, TokenLogprobs
from edgephi.errors import EngineFailed

_IdArray = npt.NDArray[np.intp]

# No model has logits near this. It is far enough below float32's limit that penalties cannot overflow.
_MAX_LOGIT = 1e30
_NUCLEUS_FIRST_HELPING = 128
_NUCLEUS_GROWTH = 16
_BLOCK = 256  # weights summed at once before the one that is drawn is looked for


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A drawn token, with log-probabilities if the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


class Sampler:
    """
    Draws the tokens of one request, in order; one uniform number per token, so position i always gets the i-th.

    Lives as long as its request; needs no closing.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        has_penalty = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._penalties = _Penalties(params, prompt, vocab_size) if has_penalty else None

    def sample(self, logits: F32Array) -> SampledToken:
        """
        Draw the next token and remember it for the penalties.

        Args:
            logits: (vocab_size,) float32, as the model computed them; left unchanged.

        Raises:
            EngineFailed: If a logit is NaN, infinite or absurdly large: no token drawn from them means anything.
        """
        with np.errstate(invalid="ignore"):  # NaN makes both comparisons false, which is the answer wanted
            is_usable = bool(logits.max() < _MAX_LOGIT and logits.min() > -_MAX_LOGIT)
        if not is_usable:
            raise EngineFailed("the model computed logits that are not finite numbers; the answer cannot go on")
        adjusted = logits if self._penalties is None else self._penalties.apply(logits)
        if self._params.temperature == 0.0:
            token_id = int(np.argmax(adjusted))  # the first of equals, so the lowest id
        else:
            token_id = draw_token(adjusted, self._params, self._rng.random())
        if self._penalties is not None:
            self._penalties.record(token_id)
        logprobs = None
        if self._params.logprobs is not None:
            logprobs = token_logprobs(logits, token_id, self._params.logprobs)
        return SampledToken(token_id, logprobs)


def draw_token(logits: F32Array, params: SamplingParams, uniform: float) -> int:
    """
    Apply temperature, top_k, min_p and top_p, then draw by inverting the cumulative distribution.

    Args:
        logits: (vocab_size,) float32, finite, penalties applied.
        params: ``temperature`` above 0.
        uniform: The random number, 0 up to but not including 1.

    Returns:
        A token id; never one of probability 0.
    """
    ids: _IdArray | None = None  # None: all of them, in order
    if params.top_k is not None and params.top_k < len(logits):
        ids = _top_ids(logits, params.top_k)
        logits = logits[ids]
    # A temperature below the smallest float32 would turn into 0 and 0 / 0 into NaN.
    temperature = max(params.temperature, float(np.finfo(np.float32).tiny))
    with np.errstate(over="ignore"):  # at such temperatures -inf, and so a weight of 0, is right
        weights: F32Array = np.exp((logits - logits.max()) / np.float32(temperature))  # the largest is exactly 1
    if params.min_p > 0.0:
        ids, weights = _keep(ids, weights, np.flatnonzero(weights >= np.float32(params.min_p)))
    if params.top_p < 1.0:
        ids, weights = _keep(ids, weights, _nucleus(weights, params.top_p))
    index = _draw_index(weights, uniform)
    return index if ids is None else int(ids[index])


def token_logprobs(logits: F32Array, token_id: int, num_top: int) -> TokenLogprobs:
    """
    Log-probabilities of the distribution as the model gave it.

    Args:
        logits: (vocab_size,) float32, unmodified.
        token_id: The token chosen.
        num_top: How many of the most likely tokens to list.
    """
    highest = float(logits.max())
    log_total = highest + float(np.log(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        ids = _descending(logits, _top_ids(logits, min(num_top, len(logits))))
        top = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return TokenLogprobs(logprob=float(logits[token_id]) - log_total, top=top)


class _Penalties:
    """How often each token has occurred. Two arrays over the vocabulary, kept only where a penalty is set."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._seen = np.zeros(vocab_size, np.bool_)  # in the prompt or in the answer
        self._seen[list(prompt)] = True
        self._counts = np.zeros(vocab_size, np.int32)  # in the answer

    def apply(self, logits: F32Array) -> F32Array:
        """
        Return a copy with the penalties in force.

        Source: repetition, CTRL (arXiv 1909.05858) section 4.1, with the sign rule that became usual: a positive
        logit is divided and a negative one multiplied, so that the token always becomes less likely.
        """
        params = self._params
        ids = np.flatnonzero(self._seen)
        values: F32Array = logits[ids]
        if params.repetition_penalty != 1.0:
            penalty = np.float32(params.repetition_penalty)
            values = np.where(values > 0, values / penalty, values * penalty)
        counts = self._counts[ids].astype(np.float32)
        values -= np.float32(params.presence_penalty) * (counts > 0)
        values -= np.float32(params.frequency_penalty) * counts
        adjusted = logits.copy()
        adjusted[ids] = values
        return adjusted

    def record(self, token_id: int) -> None:
        self._seen[token_id] = True
        self._counts[token_id] += 1


def _keep(ids: _IdArray | None, weights: F32Array, kept: _IdArray) -> tuple[_IdArray, F32Array]:
    return kept if ids is None else ids[kept], weights[kept]


def _draw_index(weights: F32Array, uniform: float) -> int:
    """
    Invert the cumulative sum of weights at ``uniform`` of the total; never an index of weight 0.

    Sums blocks first: a running sum of all weights takes ten times as long as their sums in blocks.
    """
    mass = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64))
    # Strictly below the total, for the product may round up to it. The first step above the target has weight > 0.
    target = min(uniform * mass[-1], np.nextafter(mass[-1], 0.0))
    block = int(np.searchsorted(mass, target, side="right"))
    start = block * _BLOCK
    within = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    target = min(target - (mass[block - 1] if block else 0.0), np.nextafter(within[-1], 0.0))
    return start + int(np.searchsorted(within, target, side="right"))


def _top_ids(values: F32Array, num_top: int) -> _IdArray:
    """Indices of the ``num_top`` largest values, ascending; of equal values the lowest indices. No full sort."""
    num_values = len(values)
    if num_top >= num_values:
        return np.arange(num_values)
    smallest_kept = np.partition(values, num_values - num_top)[num_values - num_top]
    above = np.flatnonzero(values > smallest_kept)
    equal = np.flatnonzero(values == smallest_kept)[: num_top - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _descending(values: F32Array, ids: _IdArray) -> _IdArray:
    """Order ascending indices by value, largest first; equal values keep the lowest index first."""
    order: _IdArray = ids[np.argsort(-values[ids], kind="stable")]
    return order


def _heaviest_first(weights: F32Array, ids: _IdArray) -> _IdArray:
    """
    Order ascending indices by weight, which is not negative, largest first; of equal ones the lowest index first.

    One sort of integers, several times as fast as a stable one of floats: the bits of floats that are not negative are
    in the order of their values, so the complement above and the index below make the key.
    """
    bits = weights[ids].view(np.uint32).astype(np.uint64)
    keys = ((np.uint64(0xFFFFFFFF) - bits) << np.uint64(32)) | ids.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _nucleus(weights: F32Array, top_p: float) -> _IdArray:
    """Indices of the fewest most likely tokens whose mass is at least ``top_p`` of the total."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    helping = _NUCLEUS_FIRST_HELPING
    while True:
        ids = _heaviest_first(weights, _top_ids(weights, helping))
        mass = np.cumsum(weights[ids], dtype=np.float64)
        if mass[-1] >= wanted or len(ids) == len(weights):
            return ids[: int(np.searchsorted(mass, wanted, side="left")) + 1]
        helping *= _NUCLEUS_GROWTH
