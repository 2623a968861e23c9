"""
What waits between the engine and the connection of one client: bounded, and merged where the reader is behind.

Owns the bound. The engine never waits for a reader; a reader that falls behind gets fewer and longer deltas, and one
that takes nothing loses its answer, so that its place and its memory are free for others.
"""

from __future__ import annotations

import asyncio
from collections import deque

from edgephi.errors import ReaderTooSlow
from edgephi.generation.request import Delta, GenerationEvent

MAX_BUFFER_BYTES = 64 << 10
"""About 16,000 tokens of text, or some hundred with twenty alternatives each."""

MAX_APART = 8
"""Deltas that wait as they came; beyond that new ones join the last."""

_TOKEN_BYTES = 48  # a token with its log-probability on the wire, rounded up


class StreamBuffer:
    """
    Events of one answer on their way to its reader. Lives as long as the call; used on its event loop only.

    Args:
        max_bytes: Most bytes of text and log-probabilities that wait.
    """

    def __init__(self, max_bytes: int = MAX_BUFFER_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[GenerationEvent] = deque()
        self._num_bytes = 0
        self._has_overflowed = False
        self._arrived = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        """Bytes that wait."""
        return self._num_bytes

    def put(self, event: GenerationEvent) -> bool:
        """Add an event; return whether there was room. Without room everything is dropped and the reader is told."""
        if self._has_overflowed:
            return False
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Delta):
            self._num_bytes += _size(event)
            if self._num_bytes > self._max_bytes:
                self._has_overflowed = True
                self._waiting.clear()
                self._arrived.set()
                return False
            if isinstance(last, Delta) and len(self._waiting) >= MAX_APART:
                self._waiting[-1] = Delta(text=last.text + event.text, logprobs=last.logprobs + event.logprobs)
                return True
        self._waiting.append(event)
        self._arrived.set()
        return True

    async def get(self) -> GenerationEvent:
        """
        Wait for the next event and take it.

        Raises:
            ReaderTooSlow: If the reader was too far behind.
        """
        await self._arrived.wait()
        if self._has_overflowed:
            raise ReaderTooSlow(
                f"more than {self._max_bytes >> 10} KiB of the answer waited to be read; read the stream as it comes"
            )
        event = self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
        if isinstance(event, Delta):
            self._num_bytes -= _size(event)
        return event


def _size(delta: Delta) -> int:
    return len(delta.text.encode()) + _TOKEN_BYTES * sum(1 + len(token.top) for token in delta.logprobs)
