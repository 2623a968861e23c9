from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgephi.engine.request import RequestId, TokenLogprobs, TokenSampled
from edgephi.generation.answer import AnswerAssembler
from edgephi.generation.request import Delta, TokenText, TopToken
from edgephi.text.stop_strings import StopStringFinder
from edgephi.text.tokenizer import Tokenizer

LOGPROBS = TokenLogprobs(logprob=-0.5, top=((3, -0.5),))

texts = st.text(st.one_of(st.sampled_from("robot é\n"), st.characters(exclude_categories=["Cs"]))).map(
    lambda text: text.replace("▁", "")
)
stop_lists = st.lists(st.text("robt é\n", min_size=1, max_size=4), max_size=3)


def sampled(token_id: int, *, with_logprobs: bool = False) -> TokenSampled:
    """One token as the engine reports it."""
    return TokenSampled(request_id=RequestId("r"), token_id=token_id, logprobs=LOGPROBS if with_logprobs else None)


def run(answer: AnswerAssembler, ids: list[int], *, with_logprobs: bool = False) -> list[Delta]:
    """Every delta of an answer of these tokens."""
    deltas = [answer.push(sampled(token_id, with_logprobs=with_logprobs)) for token_id in ids]
    return [delta for delta in [*deltas, answer.finish()] if delta is not None]


@given(text=texts, stops=stop_lists, with_logprobs=st.booleans())
@settings(deadline=None)
def test_the_answer_is_the_text_before_the_first_stop(
    tokenizer: Tokenizer, text: str, stops: list[str], with_logprobs: bool
) -> None:
    """Joined deltas equal the text up to the stop string, wherever the tokens cut it; no delta is empty."""
    finder = StopStringFinder(stops)
    expected, matched = finder.push(text)
    expected += finder.flush()
    answer = AnswerAssembler(tokenizer, stops, continues_text=False)

    deltas = run(answer, tokenizer.encode(text), with_logprobs=with_logprobs)

    assert "".join(delta.text for delta in deltas) == expected
    assert answer.matched_stop == matched
    assert all(delta.text or delta.logprobs for delta in deltas)


@given(text=texts, stops=stop_lists)
@settings(deadline=None)
def test_log_probabilities_never_run_ahead_of_the_text(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """Reported tokens are the first ones of the answer, within the emitted text, and all of it without a stop."""
    ids = tokenizer.encode(text)
    answer = AnswerAssembler(tokenizer, stops, continues_text=True)
    emitted, reported = "", list[TokenText]()

    for delta in run(answer, ids, with_logprobs=True):
        emitted += delta.text
        reported += delta.logprobs
        assert len(b"".join(token.data for token in reported)) <= len(emitted.encode())

    assert [token.token_id for token in reported] == ids[: len(reported)]
    if answer.matched_stop is None:
        assert len(reported) == len(ids)


def test_a_token_cut_by_the_stop_string_is_not_reported(tokenizer: Tokenizer) -> None:
    """Of a token that holds both answer and stop string, the text before the stop is sent, the token is not."""
    [the, robot] = tokenizer.encode("The robot")
    answer = AnswerAssembler(tokenizer, ["bot"], continues_text=False)

    deltas = run(answer, [the, robot], with_logprobs=True)

    assert "".join(delta.text for delta in deltas) == "The ro"
    assert [token.token_id for delta in deltas for token in delta.logprobs] == [the]
    assert answer.matched_stop == "bot"


def test_a_token_within_a_character_is_reported_with_the_character(
    tokenizer: Tokenizer, tokenizer_json: dict[str, Any]
) -> None:
    """The bytes of one character are reported together, in the delta that has the character."""
    first, second = (tokenizer_json["model"]["vocab"][piece] for piece in ("<0xC3>", "<0xA9>"))
    answer = AnswerAssembler(tokenizer, [], continues_text=False)

    assert answer.push(sampled(first, with_logprobs=True)) is None
    delta = answer.push(sampled(second, with_logprobs=True))

    top = (TopToken(token_id=3, data=tokenizer.token_bytes(3), logprob=-0.5),)
    assert delta == Delta(
        text="é",
        logprobs=(
            TokenText(token_id=first, data=b"\xc3", logprob=-0.5, top=top),
            TokenText(token_id=second, data=b"\xa9", logprob=-0.5, top=top),
        ),
    )


def test_tokens_without_text_are_sent_only_for_their_log_probabilities(tokenizer: Tokenizer) -> None:
    """A control token in the answer gives no delta, unless log-probabilities were asked for."""
    end = tokenizer.special_id("<|end|>")

    assert AnswerAssembler(tokenizer, [], continues_text=False).push(sampled(end)) is None
    delta = AnswerAssembler(tokenizer, [], continues_text=False).push(sampled(end, with_logprobs=True))
    assert delta is not None
    assert [token.data for token in delta.logprobs] == [b""]


def test_nothing_follows_a_stop_string(tokenizer: Tokenizer) -> None:
    """Tokens after the match, and the end of the answer, give no delta."""
    answer = AnswerAssembler(tokenizer, ["robot"], continues_text=False)

    assert [delta.text for delta in run(answer, tokenizer.encode("The robot moves"))] == ["The", " "]


def test_an_answer_that_ends_within_a_character_says_so(tokenizer: Tokenizer, tokenizer_json: dict[str, Any]) -> None:
    """Half a character at the end becomes U+FFFD in a last delta."""
    answer = AnswerAssembler(tokenizer, ["robot"], continues_text=False)

    deltas = run(answer, [tokenizer_json["model"]["vocab"]["<0xC3>"]])

    assert deltas == [Delta(text="\ufffd")]


def test_a_stop_string_may_be_found_at_the_very_end(tokenizer: Tokenizer, tokenizer_json: dict[str, Any]) -> None:
    """A stop string that only the flush completes still ends the answer before it."""
    answer = AnswerAssembler(tokenizer, ["\ufffd"], continues_text=False)

    assert run(answer, [tokenizer_json["model"]["vocab"]["<0xC3>"]]) == []
    assert answer.matched_stop == "\ufffd"
