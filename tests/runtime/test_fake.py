"""FakeBackend: its answers follow the pages it was given, and it refuses batches that contradict themselves."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from edgephi.engine.backend import ForwardBatch, I32Array
from edgephi.errors import ConfigError, EngineFailed
from edgephi.runtime.fake import FakeBackend


def _array(*values: int) -> I32Array:
    return np.array(values, np.int32)


def _batch(tokens: tuple[int, ...], start: int, pages: tuple[int, ...], page_size: int = 2) -> ForwardBatch:
    """One sequence whose ``tokens`` begin at position ``start``; logits of its last row."""
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    table = np.array([pages], np.int32)
    return ForwardBatch(
        tokens=_array(*tokens),
        positions=positions,
        slots=table[0, positions // page_size] * page_size + positions % page_size,
        row_start=_array(0, len(tokens)),
        block_table=table,
        kv_len=_array(start + len(tokens)),
        logit_rows=_array(len(tokens) - 1),
    )


def _backend(*, script: tuple[int, ...] | None = None) -> FakeBackend:
    return FakeBackend(
        vocab_size=20,
        page_size=2,
        num_pages=8,
        max_batch_tokens=6,
        max_context_tokens=12,
        script=script,
        eos_token_id=9,
    )


def test_spec_reports_the_sizes_chosen() -> None:
    """The sizes given to the constructor are the ones the engine will respect."""
    spec = _backend().spec
    assert (spec.vocab_size, spec.page_size, spec.num_pages) == (20, 2, 8)
    assert (spec.max_batch_tokens, spec.max_context_tokens) == (6, 12)


def test_chunks_and_pages_do_not_change_the_logits() -> None:
    """The same history gives the same logits in one chunk, in several, and in other pages."""
    whole = _backend().forward(_batch((1, 2, 3, 4, 5), 0, (0, 1, 2))).copy()
    backend = _backend()
    backend.forward(_batch((1, 2, 3), 0, (7, 3, 5)))
    parts = backend.forward(_batch((4, 5), 3, (7, 3, 5)))
    assert whole.shape == (1, 20)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, parts)


def test_the_whole_history_matters() -> None:
    """Changing one early token in its page changes later logits: history is read back, not remembered."""
    backend = _backend()
    backend.forward(_batch((1, 2, 3, 4), 0, (0, 1, 2)))
    first = backend.forward(_batch((5,), 4, (0, 1, 2))).copy()
    backend.forward(_batch((6, 2), 0, (0,)))  # another owner writes page 0
    assert not np.array_equal(first, backend.forward(_batch((5,), 4, (0, 1, 2))))


def test_a_mixed_batch_equals_separate_ones() -> None:
    """Rows of several sequences in one forward get the logits each would get alone, in the order asked for."""
    one, two = _batch((1, 2, 3), 0, (0, 1)), _batch((4, 5), 0, (2, 0))
    mixed = ForwardBatch(
        tokens=np.concatenate([one.tokens, two.tokens]),
        positions=np.concatenate([one.positions, two.positions]),
        slots=np.concatenate([one.slots, two.slots]),
        row_start=_array(0, 3, 5),
        block_table=np.concatenate([one.block_table, two.block_table]),
        kv_len=_array(3, 2),
        logit_rows=_array(4, 1),
    )
    logits = _backend().forward(mixed)
    assert np.array_equal(logits[0], _backend().forward(two)[0])
    assert np.array_equal(logits[1], _backend().forward(_batch((1, 2), 0, (0, 1)))[0])


def test_no_rows_wanted_gives_no_logits() -> None:
    """A chunk in the middle of a prompt asks for no logits and gets an array of none."""
    batch = dataclasses.replace(_batch((1, 2), 0, (0,)), logit_rows=_array())
    assert _backend().forward(batch).shape == (0, 20)


def test_logits_die_with_the_next_call() -> None:
    """Logits kept too long turn into NaN, so that a late reader is noticed."""
    backend = _backend()
    kept = backend.forward(_batch((1,), 0, (0,)))
    backend.forward(_batch((2,), 1, (0,)))
    assert np.isnan(kept).all()


@pytest.mark.parametrize("prompt", [(1, 2, 3), (5,), (4, 6, 6)])
def test_a_script_follows_any_prompt_and_ends_with_eos(prompt: tuple[int, ...]) -> None:
    """The script comes after the prompt whatever its tokens, then eos for as long as asked."""
    backend = _backend(script=(6, 6, 7))
    pages = (0, 1, 2, 3, 4)
    logits = backend.forward(_batch(prompt, 0, pages))
    answer: list[int] = []
    for position in range(len(prompt), len(prompt) + 5):
        answer.append(int(np.argmax(logits)))
        logits = backend.forward(_batch((answer[-1],), position, pages))
    assert answer == [6, 6, 7, 9, 9]


def test_a_script_goes_on_behind_guessed_tokens() -> None:
    """Rows that all want logits continue the answer one by one, and a guess that is dropped leaves no trace."""
    backend = _backend(script=(6, 6, 7))
    pages = (0, 1, 2, 3, 4)
    backend.forward(_batch((1, 2, 3), 0, pages))
    guessed = dataclasses.replace(_batch((6, 8, 8), 3, pages), logit_rows=_array(0, 1, 2))
    assert np.argmax(backend.forward(guessed), axis=1).tolist() == [6, 7, 9]
    assert int(np.argmax(backend.forward(_batch((6,), 4, pages)))) == 7


def test_a_habit_makes_one_successor_likely() -> None:
    """With a habit the logit of one token, which depends on the last token alone, is higher by that much."""
    for tokens in ((1, 2, 3), (5, 3)):
        plain, habitual = (
            FakeBackend(vocab_size=20, page_size=2, num_pages=8, habit=habit).forward(_batch(tokens, 0, (0, 1)))[0]
            for habit in (0.0, 50.0)
        )
        assert np.flatnonzero(plain != habitual).tolist() == [2]
        assert habitual[2] - plain[2] == pytest.approx(50.0, abs=1e-3)


def test_a_script_starts_anew_on_shared_pages() -> None:
    """A later prompt that continues an earlier answer by a single token still gets the whole script."""
    backend = _backend(script=(6, 7))
    backend.forward(_batch((1,), 0, (0, 1)))
    backend.forward(_batch((6,), 1, (0, 1)))  # page 0 now holds a full page: the prompt and one answer token
    backend.forward(_batch((2, 2), 0, (3,)))  # somebody else's turn
    assert int(np.argmax(backend.forward(_batch((8,), 2, (0, 4))))) == 6


def test_reading_a_slot_never_written_is_refused() -> None:
    """A block table that leads to an empty page is an error, not an answer."""
    with pytest.raises(EngineFailed, match="never written"):
        _backend().forward(_batch((1,), 2, (0, 1)))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"slots": _array(0, 3)}, "where the block table"),
        ({"positions": _array(0, 2)}, "positions"),
        ({"kv_len": _array(3)}, "longer than its row"),
        ({"kv_len": _array(13)}, "longer than the context"),
        ({"tokens": _array(1, 20)}, "vocabulary"),
        ({"block_table": _array(8).reshape(1, 1)}, "outside the pool"),
        ({"logit_rows": _array(2)}, "outside the batch"),
        ({"row_start": _array(0, 1)}, "cover all rows"),
        ({"tokens": np.array([1, 2], np.int64)}, "int32"),
    ],
)
def test_contradictory_batches_are_refused(changes: dict[str, I32Array], what: str) -> None:
    """A batch no real backend could run as meant raises EngineFailed and says why."""
    with pytest.raises(EngineFailed, match=what):
        _backend().forward(dataclasses.replace(_batch((1, 2), 0, (0,)), **changes))


def test_two_owners_of_a_slot_are_refused() -> None:
    """Two sequences that write the same page in one step are an error."""
    batch = ForwardBatch(
        tokens=_array(1, 2),
        positions=_array(0, 0),
        slots=_array(4, 4),
        row_start=_array(0, 1, 2),
        block_table=_array(2, 2).reshape(2, 1),
        kv_len=_array(1, 1),
        logit_rows=_array(0, 1),
    )
    with pytest.raises(EngineFailed, match="share a slot"):
        _backend().forward(batch)


def test_too_many_rows_are_refused() -> None:
    """A batch larger than the spec is an error."""
    with pytest.raises(EngineFailed, match="7 rows"):
        _backend().forward(_batch((1,) * 7, 0, (0, 1, 2, 3)))


def test_a_closed_backend_refuses_to_run() -> None:
    """After close, which may be repeated, every forward fails."""
    backend = _backend()
    backend.close()
    backend.close()
    with pytest.raises(EngineFailed, match="closed"):
        backend.forward(_batch((1,), 0, (0,)))


def test_a_step_takes_as_long_as_asked() -> None:
    """step_delay_s makes each forward take at least that long."""
    backend = FakeBackend(vocab_size=20, page_size=2, step_delay_s=0.01)
    before = time.monotonic()
    backend.forward(_batch((1,), 0, (0,)))
    assert time.monotonic() - before >= 0.01


@pytest.mark.parametrize("changes", [{"page_size": 0}, {"num_pages": 0}, {"script": (20,)}, {"eos_token_id": -1}])
def test_impossible_sizes_are_refused(changes: dict[str, int | tuple[int, ...]]) -> None:
    """A size below 1 or a scripted token outside the vocabulary is a configuration error."""
    settings: dict[str, int | tuple[int, ...]] = {"vocab_size": 20, **changes}
    with pytest.raises(ConfigError):
        FakeBackend(**settings)  # type: ignore[arg-type]  # the values are wrong on purpose
