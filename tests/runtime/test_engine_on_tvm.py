"""The real engine over a compiled model: batching and shared prefixes change no answer."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import (
    EngineRequest,
    Finished,
    FinishReason,
    RequestId,
    SamplingParams,
    TokenLogprobs,
    TokenSampled,
    Usage,
)
from edgephi.runtime import LoadedModel

Load = Callable[..., LoadedModel]

pytestmark = pytest.mark.tvm

PROMPT_LENGTHS = (3, 16, 17, 40, 100)
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def model(load: Load) -> LoadedModel:
    """The tiny model with the default options."""
    return load("q4f16_1")


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    """Random prompts of several lengths: within a page, a page, just over, several, several prefill chunks."""
    rng = np.random.default_rng(11)
    return [tuple(rng.integers(3, 512, length).tolist()) for length in PROMPT_LENGTHS]


@pytest.fixture(scope="module")
def alone(model: LoadedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """What each prompt is answered by an engine that has nothing else to do."""
    return [_answers(_engine(model), [prompt])[0][0] for prompt in prompts]


def _engine(model: LoadedModel, **config: int) -> Engine:
    return Engine(model.backend, EngineConfig(**config))


def _answers(engine: Engine, prompts: Iterable[tuple[int, ...]]) -> list[tuple[list[int], Usage]]:
    """Submit all prompts, run to the end, and return each one's greedy tokens and usage."""
    names = []
    for index, prompt in enumerate(prompts):
        names.append(RequestId(f"r{index}"))
        engine.submit(
            EngineRequest(
                request_id=names[-1],
                prompt=prompt,
                max_tokens=MAX_TOKENS,
                sampling=SamplingParams(temperature=0.0),
            )
        )
    tokens: dict[RequestId, list[int]] = {name: [] for name in names}
    usage: dict[RequestId, Usage] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenSampled):
                tokens[event.request_id].append(event.token_id)
            elif isinstance(event, Finished):
                assert event.reason is FinishReason.LENGTH, event
                usage[event.request_id] = event.usage
        engine.check_integrity()
    return [(tokens[name], usage[name]) for name in names]


def test_the_first_token_is_the_most_likely_one(
    model: LoadedModel, prompts: list[tuple[int, ...]], alone: list[list[int]]
) -> None:
    """Every greedy token is the argmax of the logits of all tokens before it."""
    for prompt, answer in zip(prompts, alone, strict=True):
        logits = model.logits([*prompt, *answer])
        assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == answer


@pytest.mark.parametrize("config", [{"max_running": 5}, {"max_running": 2, "prefill_chunk_tokens": 7}])
def test_a_batch_answers_as_each_request_alone(
    config: dict[str, int], model: LoadedModel, prompts: list[tuple[int, ...]], alone: list[list[int]]
) -> None:
    """Requests that run together, in chunks of any size, get the tokens they would get alone."""
    together = _answers(_engine(model, **config), prompts)
    assert [tokens for tokens, _ in together] == alone


def test_a_shared_prefix_changes_no_answer(model: LoadedModel, prompts: list[tuple[int, ...]]) -> None:
    """A prompt whose first pages another one left behind is answered as if it had been computed in full."""
    long = prompts[-1]
    variants = [long, (*long[:64], *prompts[1]), (*long[:33], *prompts[0])]
    fresh = [_answers(_engine(model), [prompt])[0] for prompt in variants]
    assert [usage.cached_tokens for _, usage in fresh] == [0, 0, 0]
    engine = _engine(model)
    shared = [_answers(engine, [prompt])[0] for prompt in variants]
    assert [usage.cached_tokens for _, usage in shared] == [0, 64, 32]
    assert [tokens for tokens, _ in shared] == [tokens for tokens, _ in fresh]


def test_pages_of_earlier_requests_do_not_leak(model: LoadedModel, prompts: list[tuple[int, ...]]) -> None:
    """Pages full of not-a-number, as a failed step may leave them, do not reach a later answer."""
    wanted = _answers(_engine(model), [prompts[3]])[0][0]
    pages = model.backend._pages  # nothing public writes rubbish into pages
    pages.view(np.float16)[...] = np.nan  # of int8 pages the scales are what can be no number
    assert _answers(_engine(model), [prompts[3]])[0][0] == wanted


def test_released_pages_lose_their_memory_and_no_other_does(
    model: LoadedModel, prompts: list[tuple[int, ...]], alone: list[list[int]]
) -> None:
    """A run of released pages reads as zeros but for its ends, others are untouched, and answers the same."""
    pages = model.backend._pages  # nothing public shows what pages hold
    pages[...] = 1
    model.backend.release_pages(range(10, 50))
    zeros = (pages.view(np.uint8) == 0).reshape(*pages.shape[:3], -1)
    assert not zeros[:, :, :10].any()
    assert not zeros[:, :, 50:].any()
    ends = 2 * mmap.PAGESIZE / pages[0, 0, 10:50].nbytes
    assert (zeros[:, :, 10:50].mean(axis=(2, 3)) > 1 - ends).all()
    model.backend.release_pages(range(pages.shape[2]))
    assert not pages.any()
    engine = _engine(model, max_running=2)
    engine.set_limits(dataclasses.replace(engine.max_limits, keeps_cached_pages=False))
    assert [tokens for tokens, _ in _answers(engine, prompts)] == alone


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, logprobs=2),
        SamplingParams(temperature=0.4, top_p=0.9, seed=3, logprobs=2),
        SamplingParams(temperature=0.0, frequency_penalty=0.3, logprobs=2),
    ],
    ids=["greedy", "sampled", "penalties"],
)
def test_guessed_tokens_change_no_answer(
    sampling: SamplingParams, model: LoadedModel, prompts: list[tuple[int, ...]]
) -> None:
    """Tokens and their log-probabilities are the same to the last bit when a forward checks several guesses at once."""
    found = []
    for max_draft_tokens in (0, 5):
        config = EngineConfig(max_running=2, max_draft_tokens=max_draft_tokens)
        engine = Engine(model.backend, config, clock=lambda: 0.0)  # rows seem free: as many guesses as can be
        drawn: dict[RequestId, list[tuple[int, TokenLogprobs | None]]] = {}
        for turn in range(2):  # the second time the answers are known
            for index, prompt in enumerate(prompts):
                name = RequestId(f"{turn}-{index}")
                engine.submit(
                    EngineRequest(request_id=name, prompt=prompt, max_tokens=3 * MAX_TOKENS, sampling=sampling)
                )
            while engine.has_work:
                for event in engine.step():
                    if isinstance(event, TokenSampled):
                        drawn.setdefault(event.request_id, []).append((event.token_id, event.logprobs))
                engine.check_integrity()
        found.append(drawn)
        assert (engine.stats().accepted_tokens_total > 50) == (max_draft_tokens > 0)
    assert found[0] == found[1]
