"""
What every loop does alike with callers: refuse an id that is taken, call a sink, tell an end that the engine did not.

Owns no request and no lock; the loops do.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from edgephi.engine.request import EngineEvent, EngineRequest, Finished, FinishReason, RequestId, Timings, Usage
from edgephi.errors import FieldViolation, InvalidRequest

Sink = Callable[[EngineEvent], None]


def id_taken(request_id: RequestId) -> InvalidRequest:
    """Return the error of a request whose id belongs to a live one."""
    return InvalidRequest(FieldViolation("request_id", f"{request_id!r} belongs to a live request; use a new id"))


def untold_end(
    request: EngineRequest, reason: FinishReason, *, num_output: int = 0, queue_s: float = 0.0, error: str | None = None
) -> Finished:
    """Return the end of a request that the engine never had, or did not tell the end of."""
    return Finished(
        request_id=request.request_id,
        reason=reason,
        usage=Usage(prompt_tokens=len(request.prompt), cached_tokens=0, output_tokens=num_output),
        timings=Timings(queue_s=queue_s, prefill_s=0.0, decode_s=0.0),
        error=error,
    )


def after_cancel(event: EngineEvent, cancel_reason: FinishReason | None) -> EngineEvent | None:
    """
    Return what a caller is told of an event: after a cancel nothing but the end, with the cancel's reason or ERROR.

    Args:
        event: As the engine told it.
        cancel_reason: Why the request was cancelled; None if it was not.
    """
    if cancel_reason is None:
        return event
    if not isinstance(event, Finished):
        return None
    return event if event.reason is FinishReason.ERROR else dataclasses.replace(event, reason=cancel_reason)


def call_sink(sink: Sink, event: EngineEvent, log: logging.Logger, failed: str) -> bool:
    """Call a sink; if it raises, log *failed* and return False: a caller's code must not end the thread it runs on."""
    try:
        sink(event)
    except BaseException:  # even a CancelledError
        log.warning("%s request_id=%s", failed, event.request_id, exc_info=True)
        return False
    return True
