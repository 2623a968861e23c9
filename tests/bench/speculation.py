"""
How many tokens a pass over the weights gives with guessed tokens: ``make speculation``.

Asks the packaged pocket model its own held-out commands, with and without guesses, and requires equal answers. The
engine's clock stands still for that, so rows seem free: the figures are those of a machine that memory alone limits.
Quoting, which the pocket model cannot do, is shown with answers that are given: a backend that computes nothing draws
them, and the engine counts its forwards. Last comes the pocket model's speed here, measured with a clock that runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgephi.engine.backend import Backend
from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import EngineEvent, EngineRequest, Finished, RequestId, SamplingParams, TokenSampled
from edgephi.pocket import model_dir
from edgephi.pocket.commands import Example
from edgephi.pocket.evaluate import build_test_sets
from edgephi.runtime import load_model
from edgephi.runtime.fake import FakeBackend
from edgephi.text.template import Message, Role, render_chat
from edgephi.text.tokenizer import Tokenizer

MAX_DRAFT_TOKENS = 8
MAX_TOKENS = 512
PER_INTENT = 5
NUM_HISTORY = 4  # earlier commands of a conversation
QUOTING_INTENTS = ("pick", "place", "bring")
GIVEN_ANSWERS = Path(__file__).with_name("quoting.json")
ROUNDS = 5

Prompts = Sequence[tuple[int, ...]]
Answers = list[list[tuple[int, object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Answers with log-probabilities, and what they took."""

    answers: Answers
    num_tokens: int
    num_forwards: int
    num_drafted: int
    num_accepted: int
    seconds: float


def run(engine: Engine, prompts: Prompts, sampling: SamplingParams, eos: frozenset[int]) -> Outcome:
    """Answer the prompts one after another; forwards of the prompts are not counted."""
    answers: Answers = []
    before = engine.stats()
    started_at = time.perf_counter()
    for index, prompt in enumerate(prompts):
        request = EngineRequest(
            request_id=RequestId(f"r{index}"),
            prompt=prompt,
            max_tokens=min(MAX_TOKENS, engine.context_tokens - len(prompt)),
            sampling=sampling,
            stop_token_ids=eos,
        )
        engine.submit(request)
        events: list[EngineEvent] = []
        while engine.has_work:
            events += engine.step()
        end = events[-1]
        assert isinstance(end, Finished)
        assert end.error is None, end.error
        answers.append([(event.token_id, event.logprobs) for event in events if isinstance(event, TokenSampled)])
    after = engine.stats()
    # The first token of an answer comes from the forwards of its prompt; each of the others needs one or was guessed.
    num_tokens = after.tokens_generated_total - before.tokens_generated_total - len(prompts)
    num_accepted = after.accepted_tokens_total - before.accepted_tokens_total
    return Outcome(
        answers=answers,
        num_tokens=num_tokens,
        num_forwards=num_tokens - num_accepted,
        num_drafted=after.drafted_tokens_total - before.drafted_tokens_total,
        num_accepted=num_accepted,
        seconds=time.perf_counter() - started_at,
    )


def compare(
    name: str,
    make_engine: Callable[[int], Engine],
    tasks: Sequence[Prompts],
    sampling: SamplingParams,
    eos: frozenset[int],
) -> None:
    """Print a line for tasks that each get an engine of their own; stop if an answer depends on guesses."""
    tokens = forwards = drafted = accepted = answers = 0
    for prompts in tasks:
        plain = run(make_engine(0), prompts, sampling, eos)
        with_guesses = run(make_engine(MAX_DRAFT_TOKENS), prompts, sampling, eos)
        assert plain.answers == with_guesses.answers, f"{name}: guesses changed an answer"
        assert plain.num_forwards == plain.num_tokens
        answers += len(prompts)
        tokens += with_guesses.num_tokens
        forwards += with_guesses.num_forwards
        drafted += with_guesses.num_drafted
        accepted += with_guesses.num_accepted
    share = f"{accepted / drafted:.0%}" if drafted else "none guessed"
    sys.stdout.write(f"| {name} | {answers} | {tokens / answers:.1f} | {tokens / forwards:.2f} | {share} |\n")


def main() -> None:
    """Print the tables."""
    tokenizer = Tokenizer.from_model_dir(model_dir())
    examples = build_test_sets(PER_INTENT)["held_out"]
    # Mixed, for test sets come intent by intent and a household's commands do not.
    examples = [example for start in range(PER_INTENT) for example in examples[start::PER_INTENT]]
    single = [_prompt(tokenizer, [], example) for example in examples]
    talk = [
        _prompt(tokenizer, examples[index - NUM_HISTORY : index], examples[index])
        for index in range(NUM_HISTORY, len(examples))
    ]
    quoting = [p for p, e in zip(single, examples, strict=True) if e.intent in QUOTING_INTENTS]
    eos = frozenset({tokenizer.special_id("<|end|>")})
    greedy = SamplingParams(temperature=0.0, logprobs=2)
    warm = SamplingParams(temperature=0.8, top_p=0.95, seed=11, logprobs=2)
    head = "| task | answers | tokens per answer | tokens per pass | guesses that were right |\n|---|---|---|---|---|\n"
    with load_model(model_dir()) as model:

        def still(max_draft_tokens: int) -> Engine:
            return _engine(model.backend, max_draft_tokens, clock=lambda: 0.0)

        sys.stdout.write(f"Pocket model, at most {MAX_DRAFT_TOKENS} guesses, clock standing still\n\n{head}")
        compare("JSON, each command alone", still, [[p] for p in single], greedy, eos)
        compare("JSON, each quoting the name of a thing, alone", still, [[p] for p in quoting], greedy, eos)
        compare(f"JSON, {NUM_HISTORY} earlier turns in the prompt", still, [[p] for p in talk], greedy, eos)
        compare("JSON, one command after another", still, [single], greedy, eos)
        compare("the same, temperature 0.8, top_p 0.95", still, [single], warm, eos)

        sys.stdout.write(f"\nGiven answers, the pocket model's tokenizer\n\n{head}")
        for task in json.loads(GIVEN_ANSWERS.read_text(encoding="utf-8")):
            prompt = tuple(render_chat(tokenizer, [Message(Role.USER, task["prompt"])]))
            answer = tokenizer.encode(task["answer"])
            compare(task["task"], _given(answer, tokenizer, eos), [[prompt]], SamplingParams(temperature=0.0), eos)

        rates: dict[int, list[float]] = {0: [], MAX_DRAFT_TOKENS: []}
        for _ in range(ROUNDS):
            for max_draft_tokens, found in rates.items():
                outcome = run(_engine(model.backend, max_draft_tokens), single, greedy, eos)
                found.append(outcome.num_tokens / outcome.seconds)
        plain, guessing = (max(found) for found in rates.values())
        sys.stdout.write(
            f"\nPocket model here, one command after another, prompts included, best of {ROUNDS}: {plain:.0f} tokens/s "
            f"without guesses, {guessing:.0f} with\n"
        )


def _engine(backend: Backend, max_draft_tokens: int, *, clock: Callable[[], float] = time.monotonic) -> Engine:
    return Engine(backend, EngineConfig(max_running=1, max_draft_tokens=max_draft_tokens), clock=clock)


def _given(answer: Sequence[int], tokenizer: Tokenizer, eos: frozenset[int]) -> Callable[[int], Engine]:
    def make(max_draft_tokens: int) -> Engine:
        backend = FakeBackend(vocab_size=tokenizer.vocab_size, script=answer, eos_token_id=next(iter(eos)))
        return _engine(backend, max_draft_tokens, clock=lambda: 0.0)

    return make


def _prompt(tokenizer: Tokenizer, history: Sequence[Example], example: Example) -> tuple[int, ...]:
    turns: list[Message] = []
    for earlier in history:
        turns += [Message(Role.USER, earlier.text), Message(Role.ASSISTANT, earlier.answer)]
    return tuple(render_chat(tokenizer, [*turns, Message(Role.USER, example.text)]))


if __name__ == "__main__":
    main()
