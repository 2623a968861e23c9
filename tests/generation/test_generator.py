from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import FinishReason, SamplingParams
from edgephi.errors import InvalidRequest, Overloaded, PromptTooLong
from edgephi.generation.generator import Generator
from edgephi.generation.request import Delta, Final, GenerationEvent, GenerationRequest, PrefillProgress
from edgephi.runtime.fake import FakeBackend
from edgephi.text.template import Message, Role
from edgephi.text.tokenizer import Tokenizer

ANSWER = "The robot moves to the door. É漢!"
PATIENCE_S = 30.0
CONTEXT_TOKENS = 512


@dataclass
class Rig:
    """A generator over the real engine and a scripted backend."""

    generator: Generator
    loop: EngineLoop
    backend: FakeBackend
    prompt: tuple[int, ...]

    def request(self, request_id: str = "r", **fields: Any) -> GenerationRequest:
        """A valid request, changed as asked."""
        return GenerationRequest(**{"request_id": request_id, "prompt": self.prompt, **fields})

    def run(self, request: GenerationRequest) -> tuple[list[Delta], Final]:
        """Stream a request to its end."""
        *events, final = self.generator.stream(request)
        assert isinstance(final, Final)
        return [event for event in events if isinstance(event, Delta)], final


@contextlib.contextmanager
def running(
    tokenizer: Tokenizer,
    script: list[int],
    *,
    max_running: int = 4,
    max_waiting: int = 4,
    default_max_tokens: int | None = None,
    max_draft_tokens: int = 0,
    **options: Any,
) -> Iterator[Rig]:
    """An engine whose every answer is the script and then <|end|>."""
    backend = FakeBackend(
        vocab_size=tokenizer.vocab_size,
        script=script,
        eos_token_id=tokenizer.special_id("<|end|>"),
        max_context_tokens=CONTEXT_TOKENS,
        **options,
    )
    config = EngineConfig(
        max_running=max_running,
        max_waiting=max_waiting,
        prefill_chunk_tokens=8,
        max_draft_tokens=max_draft_tokens,
    )
    with EngineLoop(Engine(backend, config)) as loop:
        generator = Generator(
            tokenizer,
            loop,
            context_tokens=CONTEXT_TOKENS,
            eos_token_ids=frozenset({tokenizer.special_id("<|end|>")}),
            defaults=SamplingParams(temperature=0.0),
            default_max_tokens=default_max_tokens,
        )
        prompt = generator.chat_prompt([Message(Role.USER, "Where does the robot go?")])
        yield Rig(generator, loop, backend, prompt)
    backend.close()


@pytest.fixture
def rig(tokenizer: Tokenizer) -> Iterator[Rig]:
    """An engine that answers ANSWER."""
    with running(tokenizer, tokenizer.encode(ANSWER)) as made:
        yield made


@pytest.fixture
def slow_rig(tokenizer: Tokenizer) -> Iterator[Rig]:
    """An engine whose answer takes seconds, so that leaving early is what ends it."""
    with running(tokenizer, tokenizer.encode("robot") * CONTEXT_TOKENS, step_delay_s=0.02) as made:
        yield made


def text_of(deltas: list[Delta]) -> str:
    """The answer as a client puts it together."""
    return "".join(delta.text for delta in deltas)


def assert_pages_are_free(loop: EngineLoop) -> None:
    """No request lives in the engine and no page has an owner."""
    stats = loop.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_a_whole_answer(rig: Rig, tokenizer: Tokenizer) -> None:
    """Progress of the prompt comes first, then the text in deltas, then one Final with usage."""
    events = list(rig.generator.stream(rig.request()))

    num_progress = sum(isinstance(event, PrefillProgress) for event in events)
    progress, deltas, [final] = events[:num_progress], events[num_progress:-1], events[-1:]
    total = len(rig.prompt)
    assert progress[-1] == PrefillProgress(done_tokens=total, total_tokens=total)
    assert num_progress == -(-total // 8)
    assert text_of([delta for delta in deltas if isinstance(delta, Delta)]) == ANSWER
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    assert isinstance(final, Final)
    assert (final.reason, final.matched_stop, final.error) == (FinishReason.STOP, None, None)
    assert final.usage.prompt_tokens == total
    assert final.usage.output_tokens == len(tokenizer.encode(ANSWER)) + 1


@pytest.mark.parametrize(
    ("stop", "before"), [("moves", "The robot "), ("bot mo", "The ro"), (" d", "The robot moves to the")]
)
def test_a_stop_string_ends_the_request_at_once(rig: Rig, tokenizer: Tokenizer, stop: str, before: str) -> None:
    """A stop string, also one across tokens, is found at its last character and no further token is computed."""
    deltas, final = rig.run(rig.request(stop=("never", stop)))

    assert text_of(deltas) == before
    assert (final.reason, final.matched_stop) == (FinishReason.STOP, stop)
    ids = tokenizer.encode(ANSWER)
    needed = next(n for n in range(len(ids)) if stop in tokenizer.decode(ids[:n]))
    assert final.usage.output_tokens == needed
    assert rig.loop.stats().tokens_generated_total == needed
    assert_pages_are_free(rig.loop)


@pytest.mark.parametrize("stop", ["moves", "bot mo", " d", "!"])
def test_a_stop_string_among_guessed_tokens_ends_the_request_at_once(tokenizer: Tokenizer, stop: str) -> None:
    """Text, end and counts are those without guesses, also where one forward gave tokens beyond the stop string."""
    script = tokenizer.encode(ANSWER)
    found = []
    for max_draft_tokens in (0, 8):
        # Steps of equal length, so that guesses seem to cost nothing.
        with running(tokenizer, script, max_draft_tokens=max_draft_tokens, step_delay_s=0.002) as rig:
            rig.run(rig.request("first"))  # what it says is guessed from then on
            num_tokens = rig.loop.stats().tokens_generated_total
            deltas, final = rig.run(rig.request("second", stop=(stop,)))
            num_tokens = rig.loop.stats().tokens_generated_total - num_tokens
            assert_pages_are_free(rig.loop)
        assert (final.usage.accepted_tokens > 0) == (max_draft_tokens > 0)
        found.append((text_of(deltas), final.reason, final.matched_stop, final.usage.output_tokens, num_tokens))
    assert found[0] == found[1]
    assert found[0][3] == found[0][4]


def test_a_stop_string_in_the_last_allowed_token_is_a_stop(rig: Rig) -> None:
    """When max_tokens is reached in the step that completes a stop string, the answer counts as stopped."""
    deltas, final = rig.run(rig.request(max_tokens=2, stop=("robot",)))

    assert text_of(deltas) == "The "
    assert (final.reason, final.matched_stop) == (FinishReason.STOP, "robot")


def test_a_stop_string_that_only_the_end_completes_is_a_stop(
    tokenizer: Tokenizer, tokenizer_json: dict[str, Any]
) -> None:
    """An answer cut within a character ends in U+FFFD; where that is a stop string, the answer counts as stopped."""
    with running(tokenizer, [tokenizer_json["model"]["vocab"]["<0xC3>"]]) as rig:
        deltas, final = rig.run(rig.request(max_tokens=1, stop=("\ufffd",)))

    assert deltas == []
    assert (final.reason, final.matched_stop) == (FinishReason.STOP, "\ufffd")


def test_held_text_is_sent_before_the_end(rig: Rig) -> None:
    """Text held for a stop string that does not come is a last delta before Final."""
    deltas, final = rig.run(rig.request(max_tokens=2, stop=("robot rests",)))

    assert [delta.text for delta in deltas] == ["The", " ", "robot"]
    assert (final.reason, final.matched_stop) == (FinishReason.LENGTH, None)


def test_max_tokens_unset_fills_the_context(tokenizer: Tokenizer) -> None:
    """Without max_tokens an endless answer ends where prompt and answer fill the context."""
    with running(tokenizer, tokenizer.encode("robot") * CONTEXT_TOKENS) as rig:
        _, final = rig.run(rig.request())

    assert final.reason is FinishReason.LENGTH
    assert final.usage.prompt_tokens + final.usage.output_tokens == CONTEXT_TOKENS


def test_the_default_length_holds_where_none_is_named(tokenizer: Tokenizer) -> None:
    """default_max_tokens ends an answer that names no limit, and not one that names a larger one."""
    with running(tokenizer, tokenizer.encode("robot") * CONTEXT_TOKENS, default_max_tokens=5) as rig:
        _, unnamed = rig.run(rig.request())
        _, named = rig.run(rig.request(max_tokens=7))

    assert (unnamed.reason, unnamed.usage.output_tokens) == (FinishReason.LENGTH, 5)
    assert (named.reason, named.usage.output_tokens) == (FinishReason.LENGTH, 7)


def test_a_continued_text_keeps_its_space(tokenizer: Tokenizer) -> None:
    """After a chat prompt the answer's first space is the tokenizer's; after a raw text it belongs to the text."""
    with running(tokenizer, tokenizer.encode("robot moves")) as rig:
        completion = rig.generator.completion_prompt("The")

        assert text_of(rig.run(rig.request())[0]) == "robot moves"
        assert text_of(rig.run(rig.request(prompt=completion))[0]) == " robot moves"


def test_log_probabilities_come_with_their_text(rig: Rig, tokenizer: Tokenizer) -> None:
    """Asked for, every token of the answer is reported with its bytes and alternatives, in order."""
    deltas, _ = rig.run(rig.request(sampling=SamplingParams(temperature=0.0, logprobs=2)))

    tokens = [token for delta in deltas for token in delta.logprobs]
    assert [token.token_id for token in tokens] == tokenizer.encode(ANSWER)
    assert b"".join(token.data for token in tokens).decode() == " " + ANSWER
    assert all(len(token.top) == 2 and token.top[0].token_id == token.token_id for token in tokens)


def test_all_violations_are_reported_at_once(rig: Rig, tokenizer: Tokenizer) -> None:
    """Every field out of bounds is named with its path, before anything starts."""
    bad = rig.request(
        "",
        prompt=(1, tokenizer.vocab_size),
        max_tokens=0,
        sampling=SamplingParams(top_p=0.0, temperature=3.0),
        stop=("ok", ""),
    )
    with pytest.raises(InvalidRequest) as caught:
        rig.generator.start(bad, lambda event: None)

    fields = ["sampling.temperature", "sampling.top_p", "stop[1]", "prompt[1]", "request_id", "max_tokens"]
    assert [violation.field for violation in caught.value.violations] == fields
    assert rig.loop.stats().steps_total == 0


def test_an_empty_prompt_is_refused(rig: Rig) -> None:
    """A prompt of no tokens names the field."""
    with pytest.raises(InvalidRequest, match=r"^prompt: has 0 tokens"):
        rig.generator.stream(rig.request(prompt=()))


@pytest.mark.parametrize(("prompt_tokens", "max_tokens"), [(CONTEXT_TOKENS, None), (CONTEXT_TOKENS - 9, 10)])
def test_what_exceeds_the_context_is_too_long(rig: Rig, prompt_tokens: int, max_tokens: int | None) -> None:
    """A prompt without room for one token, or for max_tokens, is refused with the numbers."""
    with pytest.raises(PromptTooLong) as caught:
        rig.generator.stream(rig.request(prompt=(1,) * prompt_tokens, max_tokens=max_tokens))

    assert caught.value.prompt_tokens == prompt_tokens
    assert caught.value.context_tokens == CONTEXT_TOKENS


def test_too_long_is_named_among_other_violations(rig: Rig) -> None:
    """With another field wrong too, both are reported in one InvalidRequest."""
    with pytest.raises(InvalidRequest) as caught:
        rig.generator.stream(rig.request(max_tokens=CONTEXT_TOKENS, stop=("",)))

    assert [violation.field for violation in caught.value.violations] == ["stop[0]", "max_tokens"]


def test_what_fills_the_context_exactly_is_accepted(rig: Rig) -> None:
    """Prompt + max_tokens equal to the context is within it."""
    _, final = rig.run(rig.request(max_tokens=CONTEXT_TOKENS - len(rig.prompt)))

    assert final.reason is FinishReason.STOP


def test_a_sink_may_cancel_with_its_reason(rig: Rig) -> None:
    """Cancelling from inside a sink ends the request before another token, with the reason given."""
    events: queue.SimpleQueue[GenerationEvent] = queue.SimpleQueue()

    def sink(event: GenerationEvent) -> None:
        events.put(event)
        if isinstance(event, Delta):
            rig.generator.cancel("r", FinishReason.DEADLINE)

    rig.generator.start(rig.request(), sink)
    received = [events.get(timeout=PATIENCE_S)]
    while not isinstance(received[-1], Final):
        received.append(events.get(timeout=PATIENCE_S))

    final = received[-1]
    assert [event.text for event in received if isinstance(event, Delta)] == ["The"]
    assert (final.reason, final.usage.output_tokens) == (FinishReason.DEADLINE, 1)


def test_closing_the_iterator_frees_the_pages(slow_rig: Rig) -> None:
    """Leaving a stream early cancels the request and returns when its pages are free."""
    stream = slow_rig.generator.stream(slow_rig.request())
    while not isinstance(next(stream), Delta):
        pass

    stream.close()

    assert_pages_are_free(slow_rig.loop)
    assert slow_rig.loop.stats().tokens_generated_total < CONTEXT_TOKENS // 2


def test_an_interrupt_frees_the_pages(slow_rig: Rig) -> None:
    """Ctrl-C while waiting for a token cancels the request, waits for its end and goes on to the caller."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (main_thread, signal.SIGINT))
    stream = slow_rig.generator.stream(slow_rig.request())

    timer.start()
    with contextlib.closing(stream), pytest.raises(KeyboardInterrupt):
        list(stream)

    timer.join()
    assert_pages_are_free(slow_rig.loop)
    assert slow_rig.loop.stats().tokens_generated_total < CONTEXT_TOKENS // 2


def test_closing_on_the_engine_thread_does_not_stop_it(slow_rig: Rig) -> None:
    """A stream closed by the garbage collector on the engine's own thread is cancelled without waiting there."""
    stream = slow_rig.generator.stream(slow_rig.request("abandoned"))
    next(stream)
    is_over = threading.Event()

    def sink(event: GenerationEvent) -> None:
        if isinstance(event, Delta):
            stream.close()
        if isinstance(event, Final):
            is_over.set()

    slow_rig.generator.start(slow_rig.request("other", max_tokens=2), sink)

    assert is_over.wait(PATIENCE_S)
    assert list(stream) == []
    # A third request shows that the loop still runs; when it ends, the cancelled one's pages are free too.
    slow_rig.run(slow_rig.request("third", max_tokens=1))
    assert_pages_are_free(slow_rig.loop)


def test_an_unread_stream_starts_nothing(rig: Rig) -> None:
    """A stream whose first event is never asked for costs the engine nothing."""
    rig.generator.stream(rig.request())

    assert rig.loop.stats().steps_total == 0
    assert text_of(rig.run(rig.request())[0]) == ANSWER


def test_closing_after_the_end_is_harmless(rig: Rig) -> None:
    """Closing a stream that has ended does nothing, and its id is free again."""
    stream = rig.generator.stream(rig.request())
    assert isinstance(list(stream)[-1], Final)

    stream.close()

    assert rig.run(rig.request())[1].reason is FinishReason.STOP


def test_requests_run_side_by_side(rig: Rig) -> None:
    """Several live requests each get their own whole answer and their own stop string."""
    events: queue.SimpleQueue[tuple[str, GenerationEvent]] = queue.SimpleQueue()

    def sink_of(request_id: str) -> Callable[[GenerationEvent], None]:
        return lambda event: events.put((request_id, event))

    stops: dict[str, tuple[str, ...]] = {"a": (), "b": ("robot",), "c": ("door",)}
    for request_id, stop in stops.items():
        rig.generator.start(rig.request(request_id, stop=stop), sink_of(request_id))

    texts = dict.fromkeys(stops, "")
    num_live = len(stops)
    while num_live:
        request_id, event = events.get(timeout=PATIENCE_S)
        if isinstance(event, Delta):
            texts[request_id] += event.text
        num_live -= isinstance(event, Final)

    assert texts == {"a": ANSWER, "b": "The ", "c": "The robot moves to the "}


def test_no_room_is_said_at_the_first_event(tokenizer: Tokenizer) -> None:
    """A stream the engine has no place for raises Overloaded when its first event is asked for."""
    with running(tokenizer, tokenizer.encode(ANSWER), max_running=1, max_waiting=0, step_delay_s=0.01) as rig:
        with contextlib.closing(rig.generator.stream(rig.request("first"))) as first:
            next(first)
            with pytest.raises(Overloaded):
                next(rig.generator.stream(rig.request("second")))
        assert text_of(rig.run(rig.request("third"))[0]) == ANSWER


def test_a_failing_backend_ends_the_request_with_its_error(rig: Rig) -> None:
    """When the backend fails, Final has the reason ERROR and says what failed."""
    rig.backend.close()

    deltas, final = rig.run(rig.request())

    assert deltas == []
    assert final.reason is FinishReason.ERROR
    assert final.error is not None
    assert "EngineFailed" in final.error


def test_count_tokens_is_of_the_text_alone(rig: Rig, tokenizer: Tokenizer) -> None:
    """Counting adds neither BOS nor a template."""
    assert rig.generator.count_tokens("The robot") == len(tokenizer.encode("The robot"))
    assert rig.generator.count_tokens("") == 0
