"""
Which page belongs to whom: allocation, reference counts and sharing of prefixes.

Owns accounting only; the memory behind a page id is the backend's. Knows no requests and no logits.

Every page is in exactly one of three states:

    free      no owner, nothing worth keeping
    cached    no owner, but full of known tokens: kept, least recently used first to go, until reallocated
    used      one owner, or several that share its tokens as a common prefix

A page is shared only once it is full and computed, and a full page is never written again, so sharing needs no
copy-on-write.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgephi.engine.backend import I32Array

PageKey = bytes
_KEY_BYTES = 16


def page_key(parent: PageKey | None, tokens: I32Array) -> PageKey:
    """
    Name the content of a full page: a hash of the page before it and of its own tokens.

    Args:
        parent: Key of the page before it; None for the first page of a sequence.
        tokens: (page_size,) int32 token ids.

    Returns:
        16 bytes. Equal keys mean equal tokens from the start of the sequence to the end of this page; the hash
        is a cryptographic one because a collision would show one caller another's text.
    """
    content = np.ascontiguousarray(tokens, dtype=np.int32).tobytes()
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=parent or b"").digest()


def prefix_keys(prompt: I32Array, page_size: int) -> list[PageKey]:
    """Keys of a prompt's pages that may be shared: all that end before its last token, whose logits are needed."""
    keys: list[PageKey] = []
    parent: PageKey | None = None
    for index in range((len(prompt) - 1) // page_size):
        parent = page_key(parent, prompt[index * page_size : (index + 1) * page_size])
        keys.append(parent)
    return keys


@dataclass(frozen=True, slots=True)
class Allocation:
    """
    Pages given to one owner.

    Attributes:
        pages: Page ids in the order of the sequence.
        num_shared: How many of the first ones already hold the tokens asked for.
    """

    pages: tuple[int, ...]
    num_shared: int


class PagePool:
    """A fixed number of pages. Lives as long as the backend whose memory it accounts for; needs no closing."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        assert num_pages > 0
        assert page_size > 0
        self.num_pages = num_pages
        self.page_size = page_size
        self._ref_counts = [0] * num_pages
        self._free = deque(range(num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._key_of: dict[int, PageKey] = {}
        self._page_of: dict[PageKey, int] = {}
        self._keeps_cached = True

    @property
    def free_pages(self) -> tuple[int, ...]:
        """Pages with no owner and no content, ascending."""
        return tuple(sorted(self._free))

    @property
    def num_free(self) -> int:
        """Pages with no owner and no content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages with no owner whose content may be reused."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages with at least one owner; a shared page counts once."""
        return self.num_pages - self.num_free - self.num_cached

    def pages_for(self, num_tokens: int) -> int:
        """How many pages hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.page_size)

    def can_allocate(self, num_pages: int, keys: Sequence[PageKey] = ()) -> bool:
        """Whether :meth:`allocate` with the same arguments would succeed. Changes nothing."""
        shared = self._match(num_pages, keys)
        num_revived = sum(page in self._cached for page in shared)
        return num_pages - len(shared) <= self.num_free + self.num_cached - num_revived

    def allocate(self, num_pages: int, keys: Sequence[PageKey] = ()) -> Allocation:
        """
        Give pages to a new owner, who returns them all with :meth:`free`.

        Args:
            num_pages: Pages in all, shared ones included.
            keys: Keys of the owner's first pages, as far as it may share them.
        """
        assert self.can_allocate(num_pages, keys)
        shared = self._match(num_pages, keys)
        for page in shared:  # before any eviction, so that none of them is the one evicted
            self._cached.pop(page, None)
            self._ref_counts[page] += 1
        fresh = [self._take_page() for _ in range(num_pages - len(shared))]
        return Allocation((*shared, *fresh), len(shared))

    def free(self, pages: Sequence[int], *, keep_content: bool = True) -> None:
        """
        Give back one owner's pages.

        Args:
            pages: The owner's pages in the order of its sequence.
            keep_content: False if what they hold is not to be trusted; then nobody will share them again.
        """
        # Last page first: a later page is useless without the earlier ones, so it should be evicted before them.
        for page in reversed(pages):
            assert self._ref_counts[page] > 0, f"page {page} has no owner"
            self._ref_counts[page] -= 1
            if not keep_content:
                self._forget(page)
            if self._ref_counts[page] == 0:
                if not self._keeps_cached:
                    self._forget(page)
                if page in self._key_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def publish(self, page: int, key: PageKey) -> None:
        """Make a used, full and computed page shareable; if an equal one is already known, that one stays."""
        assert self._ref_counts[page] > 0, f"page {page} has no owner"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def set_keeps_cached(self, keeps_cached: bool) -> None:
        """Choose whether pages that nobody owns keep their content; if not, those that do are free at once."""
        self._keeps_cached = keeps_cached
        if not keeps_cached:
            for page in self._cached:
                self._forget(page)
            self._free.extend(self._cached)
            self._cached.clear()

    def drop_content(self) -> None:
        """Forget what every page holds: nothing computed so far will be shared again."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._page_of.clear()

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """
        Assert that the books agree with each other and with the owners' own lists.

        Args:
            owners: The pages of each present owner.
        """
        counts = [0] * self.num_pages
        for pages in owners:
            assert len(set(pages)) == len(pages), "an owner holds a page twice"
            for page in pages:
                counts[page] += 1
        assert counts == self._ref_counts, "reference counts differ from the owners' pages"
        used = {page for page, count in enumerate(counts) if count}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is free twice"
        assert not used & free
        assert not used & cached
        assert not free & cached
        assert len(free) + len(cached) + len(used) == self.num_pages, "a page is lost"
        assert {page: key for key, page in self._page_of.items()} == self._key_of
        assert cached <= self._key_of.keys()
        assert not free & self._key_of.keys()

    def _match(self, num_pages: int, keys: Sequence[PageKey]) -> list[int]:
        shared: list[int] = []
        for key in keys[:num_pages]:
            page = self._page_of.get(key)
            if page is None:
                break
            shared.append(page)
        return shared

    def _take_page(self) -> int:
        if self._free:
            page = self._free.popleft()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        self._ref_counts[page] = 1
        return page

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
