"""PagePool: states of a page, sharing and eviction."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgephi.engine.backend import I32Array
from edgephi.engine.pages import PageKey, PagePool, page_key, prefix_keys


def _tokens(*ids: int) -> I32Array:
    return np.array(ids, np.int32)


def _keys(num: int) -> list[PageKey]:
    return prefix_keys(np.arange(2 * num + 1, dtype=np.int32), 2)


def test_keys_stop_before_the_last_token() -> None:
    """A page that holds the last prompt token is never shared, since that token's logits are needed."""
    assert [len(prefix_keys(np.arange(n, dtype=np.int32), 4)) for n in (1, 3, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]


def test_key_depends_on_everything_before_the_page() -> None:
    """The same tokens after a different beginning have a different key."""
    first = prefix_keys(_tokens(1, 2, 3, 4, 9), 2)
    second = prefix_keys(_tokens(1, 5, 3, 4, 9), 2)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[1] == page_key(first[0], _tokens(3, 4))


def test_published_pages_are_shared_while_in_use_and_after() -> None:
    """A second owner gets the first one's published pages, also once the first has gone."""
    pool, keys = PagePool(8, 2), _keys(2)
    first = pool.allocate(3, keys)
    assert first.num_shared == 0
    for page, key in zip(first.pages[:2], keys, strict=True):
        pool.publish(page, key)
    second = pool.allocate(4, keys)
    assert second.num_shared == 2
    assert second.pages[:2] == first.pages[:2]
    assert pool.num_used == 5
    pool.free(first.pages)
    pool.free(second.pages)
    assert (pool.num_used, pool.num_cached, pool.num_free) == (0, 2, 6)
    assert pool.allocate(3, keys).num_shared == 2


def test_a_broken_chain_is_shared_only_up_to_the_gap() -> None:
    """Sharing ends at the first page whose key is unknown, even if a later one is known."""
    pool, keys = PagePool(8, 2), _keys(3)
    first = pool.allocate(3, keys)
    pool.publish(first.pages[0], keys[0])
    pool.publish(first.pages[2], keys[2])
    assert pool.allocate(3, keys).num_shared == 1


def test_eviction_takes_the_oldest_and_the_tail_first() -> None:
    """When no page is free, the least recently freed goes first, and of one sequence its last page."""
    pool, keys = PagePool(4, 2), _keys(4)
    owner = pool.allocate(4, keys)
    for page, key in zip(owner.pages, keys, strict=True):
        pool.publish(page, key)
    pool.free(owner.pages)
    assert pool.allocate(1).pages == owner.pages[3:]
    assert pool.allocate(1).pages == owner.pages[2:3]
    assert pool.allocate(2, keys).pages == owner.pages[:2]


def test_can_allocate_counts_revived_pages_once() -> None:
    """A cached page that would be shared is not also counted as room for new pages."""
    pool, keys = PagePool(2, 2), _keys(1)
    owner = pool.allocate(1, keys)
    pool.publish(owner.pages[0], keys[0])
    pool.free(owner.pages)
    assert pool.can_allocate(2, keys)
    assert not pool.can_allocate(3, keys)
    assert pool.num_cached == 1  # asking changed nothing


def test_untrusted_content_is_never_shared() -> None:
    """Pages freed without keeping their content, and all after drop_content, are plain free pages."""
    pool, keys = PagePool(4, 2), _keys(1)
    for _ in range(2):
        owner = pool.allocate(2, keys)
        assert owner.num_shared == 0
        pool.publish(owner.pages[0], keys[0])
        pool.free(owner.pages, keep_content=False)
        assert pool.num_free == 4
    owner = pool.allocate(2, keys)
    pool.publish(owner.pages[0], keys[0])
    pool.free(owner.pages)
    pool.drop_content()
    assert pool.num_free == 4
    assert pool.allocate(2, keys).num_shared == 0


def test_integrity_notices_a_forgotten_page() -> None:
    """check_integrity fails when the owners' lists and the books differ."""
    pool = PagePool(4, 2)
    owner = pool.allocate(2)
    pool.check_integrity([owner.pages])
    with pytest.raises(AssertionError):
        pool.check_integrity([])
    with pytest.raises(AssertionError):
        pool.check_integrity([owner.pages, owner.pages])


class PoolMachine(RuleBasedStateMachine):
    """Random owners over few texts: the books hold, and a shared page holds the text it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(7, 2)
        self.owners: list[tuple[int, ...]] = []
        self.text_of: dict[int, bytes] = {}  # what each page holds, by our own account

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=10), extra=st.integers(1, 4), num_done=st.integers(0, 9)
    )
    def allocate(self, prompt: list[int], extra: int, num_done: int) -> None:
        tokens = np.array(prompt, np.int32)
        keys = prefix_keys(tokens, 2)
        num_pages = self.pool.pages_for(len(prompt) + extra)
        if not self.pool.can_allocate(num_pages, keys):
            return
        allocation = self.pool.allocate(num_pages, keys)
        assert len(allocation.pages) == num_pages
        for index, page in enumerate(allocation.pages):
            text = tokens[: 2 * index + 2].tobytes()
            if index < allocation.num_shared:
                assert self.text_of[page] == text
            elif index < min(len(keys), num_done):
                self.text_of[page] = text
                self.pool.publish(page, keys[index])
            else:
                self.text_of.pop(page, None)
        self.owners.append(allocation.pages)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), keep=st.booleans())
    def free(self, data: st.DataObject, keep: bool) -> None:
        index = data.draw(st.integers(0, len(self.owners) - 1))
        self.pool.free(self.owners.pop(index), keep_content=keep)

    @rule()
    def drop(self) -> None:
        self.pool.drop_content()

    @invariant()
    def books_hold(self) -> None:
        self.pool.check_integrity(self.owners)
        used = {page for pages in self.owners for page in pages}
        assert self.pool.num_used == len(used)
        assert self.pool.num_used + self.pool.num_free + self.pool.num_cached == 7


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


TestPool = PoolMachine.TestCase
