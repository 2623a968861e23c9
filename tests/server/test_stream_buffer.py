"""What waits between the engine and a slow reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.engine.request import FinishReason, Timings, Usage
from edgephi.errors import ReaderTooSlow
from edgephi.generation.request import Delta, Final, TokenText
from edgephi.server.stream_buffer import MAX_APART, StreamBuffer

FINAL = Final(
    reason=FinishReason.STOP,
    matched_stop=None,
    usage=Usage(prompt_tokens=1, cached_tokens=0, output_tokens=1),
    timings=Timings(queue_s=0.0, prefill_s=0.0, decode_s=0.0),
)


def _token(text: str) -> TokenText:
    return TokenText(token_id=1, data=text.encode(), logprob=-1.0)


@given(st.lists(st.text(max_size=8)), st.sets(st.integers(0, 40)))
async def test_no_text_and_no_token_is_lost_or_moved(texts: list[str], reads: set[int]) -> None:
    """Whenever the reader reads, it gets every text and token once and in order, and the final last."""
    buffer = StreamBuffer()
    got: list[object] = []
    for index, text in enumerate(texts):
        assert buffer.put(Delta(text=text, logprobs=(_token(text),)))
        if index in reads:
            got.append(await buffer.get())
    assert buffer.put(FINAL)
    while not isinstance(got[-1] if got else None, Final):
        got.append(await buffer.get())
    deltas = [event for event in got if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == "".join(texts)
    assert [token.data.decode() for delta in deltas for token in delta.logprobs] == texts
    assert buffer.num_bytes == 0


async def test_a_reader_that_is_behind_gets_fewer_and_longer_deltas() -> None:
    """However many deltas wait, at most so many messages come of them."""
    buffer = StreamBuffer()
    for number in range(1000):
        buffer.put(Delta(text=str(number % 10)))
    buffer.put(FINAL)
    events = []
    while not isinstance(event := await buffer.get(), Final):
        events.append(event)
    assert len(events) == MAX_APART


async def test_a_backlog_beyond_the_bound_is_dropped_and_told() -> None:
    """The text that is one byte too much drops all, the reader learns it, and nothing is taken after it."""
    buffer = StreamBuffer(max_bytes=100)
    assert buffer.put(Delta(text="a" * 100))
    assert not buffer.put(Delta(text="b"))
    assert not buffer.put(FINAL)
    with pytest.raises(ReaderTooSlow, match="read the stream as it comes"):
        await buffer.get()


async def test_room_is_given_back_by_reading() -> None:
    """What was read counts no more, so a reader that keeps up may read any amount."""
    buffer = StreamBuffer(max_bytes=100)
    for _ in range(50):
        assert buffer.put(Delta(text="a" * 90))
        await buffer.get()
