"""What the tests of loops listen with."""

from __future__ import annotations

import queue
import threading

from edgephi.engine.request import EngineEvent, Finished, RequestId, TokenSampled

PATIENCE_S = 20.0
"""How long a test waits for another thread before it fails."""


class Inbox:
    """
    A sink that keeps what it got and lets a test wait for the end.

    Args:
        order: Where to add the request's id when it has ended; several may share one.
    """

    def __init__(self, order: list[RequestId] | None = None) -> None:
        self.events: list[EngineEvent] = []
        self.thread_names: set[str] = set()
        self.order = [] if order is None else order
        self._ends: queue.Queue[Finished] = queue.Queue()

    def __call__(self, event: EngineEvent) -> None:
        """Take an event."""
        self.events.append(event)
        self.thread_names.add(threading.current_thread().name)
        if isinstance(event, Finished):
            self.order.append(event.request_id)
            self._ends.put(event)

    def wait(self) -> Finished:
        """Wait for the end, which must be the only one and the last event."""
        end = self._ends.get(timeout=PATIENCE_S)
        assert self.events[-1] is end
        assert sum(isinstance(event, Finished) for event in self.events) == 1
        return end

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return sum(isinstance(event, TokenSampled) for event in self.events)
