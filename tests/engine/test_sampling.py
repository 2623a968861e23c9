"""The sampler against exact probabilities and slow references."""

from __future__ import annotations

import math
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from edgephi.engine.backend import F32Array
from edgephi.engine.request import SamplingParams
from edgephi.engine.sampling import Sampler, draw_token, token_logprobs
from edgephi.errors import EngineFailed

_LOGITS = np.array([1.0, 3.0, 2.0, 2.0, -1.0, 0.5, 2.5, -4.0], np.float32)


def _exact(logits: F32Array, params: SamplingParams) -> list[float]:
    """Probability of each token, computed the slow and obvious way in the documented order."""
    scaled = [float(x) / params.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if params.top_k is not None:
        order = order[: params.top_k]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    weights = {i: w for i, w in weights.items() if w >= params.min_p}
    total = sum(weights.values())
    if params.top_p < 1.0:
        kept, mass = {}, 0.0
        for i, weight in weights.items():
            kept[i] = weight
            mass += weight
            if mass >= params.top_p * total:
                break
        weights, total = kept, mass
    return [weights.get(i, 0.0) / total for i in range(len(scaled))]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=1.5, top_k=6, min_p=0.15, top_p=0.8),
    ],
)
def test_draws_follow_the_exact_distribution(params: SamplingParams) -> None:
    """Frequencies over 20,000 seeded draws pass a chi-square test against exact probabilities."""
    exact = _exact(_LOGITS, params)
    rng = np.random.Generator(np.random.PCG64(7))
    num_draws = 20_000
    counts = Counter(draw_token(_LOGITS, params, u) for u in rng.random(num_draws))
    assert set(counts) <= {i for i, p in enumerate(exact) if p > 0}
    possible = [i for i, p in enumerate(exact) if p > 0]
    chi_square = sum((counts[i] - num_draws * exact[i]) ** 2 / (num_draws * exact[i]) for i in possible)
    freedom = len(possible) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4  # beyond the 0.999 quantile for 1 to 7 degrees


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(1, 700),
    temperature=st.floats(0.05, 2.0),
    top_k=st.none() | st.integers(1, 700),
    top_p=st.floats(0.05, 1.0),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_every_token_owns_a_share_of_the_uniform_range(
    seed: int, num_tokens: int, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    """Whatever the truncation and however flat the row, evenly spaced uniforms hit each token in exact proportion."""
    rng = np.random.Generator(np.random.PCG64(seed))
    logits = rng.normal(0.0, 3.0, num_tokens).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    num_draws = 200
    counts = Counter(draw_token(logits, params, (i + 0.5) / num_draws) for i in range(num_draws))
    # Rounding may move a cut by one token, so a reference a hair to either side of it is accepted as well.
    near = [
        _exact(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=p, min_p=m))
        for p in (top_p - 1e-5, top_p, min(top_p + 1e-5, 1.0))
        for m in (min_p * (1 - 1e-5), min_p)
    ]
    # A token owns one interval, which holds the expected number of grid points give or take one.
    assert any(all(abs(counts[i] - num_draws * p) < 1.01 for i, p in enumerate(exact)) for exact in near)


def test_extreme_settings_never_draw_an_impossible_token() -> None:
    """Tiny temperatures, the ends of the uniform range and huge spreads still give a possible token."""
    spread = np.array([-1e29, 0.0, 5.0, 1e29], np.float32)
    for temperature in (1e-320, 1e-30, 1e-3, 2.0):
        for uniform in (0.0, 0.5, np.nextafter(1.0, 0.0)):
            assert draw_token(spread, SamplingParams(temperature=temperature), float(uniform)) == 3
    assert draw_token(_LOGITS, SamplingParams(top_p=1e-9), 0.99) == 1
    assert draw_token(_LOGITS, SamplingParams(top_k=1), 0.99) == 1


def test_a_flat_nucleus_is_as_wide_as_its_mass() -> None:
    """On a flat row top_p keeps exactly its share of the tokens, however many, lowest ids first."""
    flat = np.zeros(5000, np.float32)
    for top_p, num_kept in ((0.01, 50), (0.5, 2500), (0.999, 4995)):
        params = SamplingParams(top_p=top_p)
        drawn = [draw_token(flat, params, u) for u in (0.0, float(np.nextafter(1.0, 0.0)))]
        assert drawn == [0, pytest.approx(num_kept - 1, abs=1)]


def test_equal_logits_at_the_top_k_cut_keep_the_lowest_ids() -> None:
    """Of tokens tied at the cut the lowest ids stay, so the choice does not depend on a sort's whim."""
    logits = np.array([0.0, 1.0, 1.0, 1.0, 1.0], np.float32)
    drawn = {draw_token(logits, SamplingParams(top_k=2), u) for u in np.linspace(0, 0.999, 50)}
    assert drawn == {1, 2}


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    """Temperature 0 is argmax; ties go to the lowest id and truncation is ignored."""
    sampler = Sampler(SamplingParams(temperature=0.0, top_k=1, top_p=0.1), (0,), 4)
    assert sampler.sample(np.array([1.0, 5.0, 5.0, 2.0], np.float32)).token_id == 1


def test_the_same_seed_gives_the_same_tokens() -> None:
    """Two samplers with one seed agree draw by draw; another seed differs."""
    logits = np.zeros(1000, np.float32)
    runs = [
        [s.sample(logits).token_id for _ in range(20)]
        for s in (Sampler(SamplingParams(seed=x), (0,), 1000) for x in (5, 5, 6))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_no_seed_differs_from_request_to_request() -> None:
    """Without a seed, two requests draw independently."""
    logits = np.zeros(10_000, np.float32)
    first, second = (Sampler(SamplingParams(), (0,), 10_000) for _ in range(2))
    assert [first.sample(logits).token_id for _ in range(8)] != [second.sample(logits).token_id for _ in range(8)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    repetition=st.sampled_from([0.5, 1.0, 1.3, 10.0]),
    presence=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.3, 0.0, 1.1]),
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=6),
)
def test_penalties_match_a_slow_reference(
    seed: int, repetition: float, presence: float, frequency: float, prompt: list[int]
) -> None:
    """Greedy answers under penalties equal those of a loop over dictionaries, and the row is left unchanged."""
    rng = np.random.Generator(np.random.PCG64(seed))
    params = SamplingParams(
        temperature=0.0, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    sampler = Sampler(params, prompt, 12)
    answer: list[int] = []
    for _ in range(12):
        logits = rng.normal(0.0, 2.0, 12).astype(np.float32)
        before = logits.copy()
        expected: list[np.float32] = []
        for token_id in range(12):
            value = logits[token_id]
            if token_id in prompt or token_id in answer:
                value = value / np.float32(repetition) if value > 0 else value * np.float32(repetition)
            if token_id in answer:
                value = value - np.float32(presence) - np.float32(frequency) * np.float32(answer.count(token_id))
            expected.append(value)
        token_id = sampler.sample(logits).token_id
        assert np.array_equal(logits, before)
        assert expected[token_id] >= max(expected) - 1e-5
        answer.append(token_id)


def test_presence_and_frequency_leave_the_prompt_alone() -> None:
    """Only tokens of the answer are penalised by presence and frequency."""
    params = SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    sampler = Sampler(params, (1,), 3)
    row = np.array([0.0, 3.0, 1.0], np.float32)
    assert [sampler.sample(row).token_id for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_unusable_logits_are_refused(bad: float) -> None:
    """A row with NaN, an infinity or an absurd value raises instead of giving a token."""
    row = _LOGITS.copy()
    row[4] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineFailed):
            Sampler(SamplingParams(temperature=temperature), (0,), len(row)).sample(row)


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    """Penalties, temperature and truncation change the draw, not the log-probabilities reported."""
    params = SamplingParams(temperature=0.3, top_k=2, repetition_penalty=9.0, logprobs=3)
    sampled = Sampler(params, (1,), len(_LOGITS)).sample(_LOGITS)
    exact = _exact(_LOGITS, SamplingParams())
    assert sampled.logprobs is not None
    assert sampled.logprobs.logprob == pytest.approx(math.log(exact[sampled.token_id]), abs=1e-6)
    assert [i for i, _ in sampled.logprobs.top] == [1, 6, 2]
    assert [p for _, p in sampled.logprobs.top] == pytest.approx([math.log(exact[i]) for i in (1, 6, 2)], abs=1e-6)


def test_logprobs_can_list_fewer_or_no_alternatives() -> None:
    """Zero alternatives give an empty list, and more than the vocabulary gives the vocabulary."""
    assert token_logprobs(_LOGITS, 0, 0).top == ()
    assert len(token_logprobs(_LOGITS, 0, 20).top) == len(_LOGITS)
    assert Sampler(SamplingParams(temperature=0.0), (0,), len(_LOGITS)).sample(_LOGITS).logprobs is None
