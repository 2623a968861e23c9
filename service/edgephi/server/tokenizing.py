"""
Turning prompts into tokens beside the event loop: two threads, and a bound on what waits for them.

Owns the bound and the threads. Does not know what a prompt is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgephi.errors import Overloaded

T = TypeVar("T")

LONG_TEXT_BYTES = 16 << 10
MAX_WAITING_BYTES = 1 << 20
RETRY_AFTER_MS = 1_000


class TokenizingQueue:
    """
    Makes prompts in the order in which they came, long texts on one thread and short ones on another.

    So no number of long texts keeps a short one waiting, and at most one long text is being encoded, which takes about
    a hundred times its own memory. Lives as long as its server; used on one event loop.

    Args:
        max_bytes: Most bytes of text that wait or are being encoded.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._short = ThreadPoolExecutor(1, thread_name_prefix="tokenize-short")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="tokenize-long")

    @property
    def num_bytes(self) -> int:
        """Bytes of text that wait or are being encoded."""
        return self._num_bytes

    async def run(self, make_prompt: Callable[[], T], *, num_bytes: int) -> T:
        """
        Call a function on the thread for texts of that length; cancelling takes it out of the queue.

        Raises:
            Overloaded: If too much text waits.
            Exception: What the function raises.
        """
        if self._num_bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                f"{self._num_bytes} bytes of prompts wait to be tokenized, and {num_bytes} more would exceed "
                f"{self._max_bytes}; retry in a moment",
                retry_after_ms=RETRY_AFTER_MS,
                limit="tokenizing_bytes",
                value=self._num_bytes + num_bytes,
                most=self._max_bytes,
            )
        self._num_bytes += num_bytes
        loop = asyncio.get_running_loop()
        executor = self._long if num_bytes > LONG_TEXT_BYTES else self._short
        job = executor.submit(make_prompt)
        # Counted until the thread has done with it: a caller that gives up does not end what has begun.
        job.add_done_callback(lambda _: _tell(loop, self._give_back, num_bytes))
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Let what has begun end, on its own; drop the rest."""
        for executor in (self._short, self._long):
            executor.shutdown(wait=False, cancel_futures=True)

    def _give_back(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[int], None], num_bytes: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback, num_bytes)
