"""
Valid messages of both ends, for a fuzzer to begin with, and changes to them.

Owns the messages and the engine that they are meant for. Knows no property.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec
from tests.fuzz.draw import MARK, Draw

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    Finished,
    FinishReason,
    PrefillProgress,
    RequestId,
    SamplingParams,
    Timings,
    TokenLogprobs,
    TokenSampled,
    Usage,
)
from edgephi.isolation import messages
from edgephi.runtime.fake import FakeBackend

_ID = RequestId("a#1")


@functools.cache
def small_engine() -> Engine:
    """An engine with few pages, short pages and a small batch."""
    logging.root.addHandler(logging.NullHandler())  # or lines of the other side would be printed
    backend = FakeBackend(vocab_size=40, page_size=4, num_pages=14, max_batch_tokens=9, max_context_tokens=48)
    return Engine(backend, EngineConfig(max_running=3, max_waiting=4, prefill_chunk_tokens=5), clock=lambda: 0.0)


def request() -> EngineRequest:
    """A request that the engine runs to its end in a few steps."""
    sampling = SamplingParams(temperature=0.5, top_k=5, seed=3, logprobs=2)
    return EngineRequest(
        request_id=_ID,
        prompt=(1, 2, 3, 4, 5),
        max_tokens=6,
        sampling=sampling,
        stop_token_ids=frozenset({3}),
        client_id=MARK,
        deadline_s=9.5,
    )


def limits() -> EngineLimits:
    """Limits below the engine's own."""
    return EngineLimits(max_running=2, prefill_chunk_tokens=4, mixed_chunk_tokens=3, max_request_tokens=40)


def loaded() -> messages.Loaded:
    """What a process says once it takes requests."""
    engine = small_engine()
    facts = messages.EngineFacts(vocab_size=40, context_tokens=48, max_waiting=4, max_limits=engine.max_limits)
    return messages.Loaded(protocol=messages.PROTOCOL, engine=facts, stats=engine.stats(), facts=b"facts")


@functools.cache
def to_engine() -> tuple[messages.ToEngine, ...]:
    """Every kind of message of the front."""
    return (
        messages.Submit(request=request()),
        messages.Cancel(request_id=_ID, reason=FinishReason.CANCELLED),
        messages.SetLimits(limits=limits()),
        messages.Start(protocol=messages.PROTOCOL, parent_pid=1, heartbeat_s=1.0, options=b"options"),
    )


@functools.cache
def to_front() -> tuple[messages.ToFront, ...]:
    """Every kind of message of the engine process."""
    usage = Usage(prompt_tokens=5, cached_tokens=4, output_tokens=1)
    end = Finished(
        request_id=_ID,
        reason=FinishReason.LENGTH,
        usage=usage,
        timings=Timings(queue_s=0.1, prefill_s=0.2, decode_s=0.3),
    )
    logprobs = TokenLogprobs(logprob=-0.5, top=((1, -0.5), (2, -math.inf)))
    events: tuple[EngineEvent, ...] = (
        PrefillProgress(request_id=_ID, done_tokens=5, total_tokens=5),
        TokenSampled(request_id=_ID, token_id=7, logprobs=logprobs),
        end,
    )
    stats = small_engine().stats()
    report = messages.Report(
        events=tuple(map(messages.event_to_wire, events)), stats=stats, last_step_at=1.5, retry_after_ms=100
    )
    return (
        report,
        messages.Report(events=(), stats=stats, last_step_at=2.5, retry_after_ms=0),
        loaded(),
        messages.Loading(label="kernel", done=1, total=9),
        messages.Failed(kind="ConfigError", message="max_running is 0"),
        messages.Log(level=logging.DEBUG, logger="edgephi.fuzz", text="a line"),
    )


def changed(message: messages.ToEngine | messages.ToFront, draw: Draw) -> bytes:
    """Return a message with some of its values changed, left out or added, at any depth."""
    tree = msgspec.msgpack.decode(messages.encode(message))
    for _ in range(1 + draw.byte() % 3):
        tree = _change(tree, draw)
    return msgspec.msgpack.encode(tree)


def _change(tree: Any, draw: Draw) -> Any:
    if not tree or not isinstance(tree, dict | list) or draw.byte() < 32:
        return _value(draw)
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, how = draw.one_of(keys), draw.byte()
    if how < 16:
        del tree[key]
    elif how < 32:
        if isinstance(tree, dict):
            tree[draw.text()] = tree[key]
        else:
            tree.append(tree[key])
    else:
        tree[key] = _change(tree[key], draw)
    return tree


def _value(draw: Draw) -> Any:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: draw.whole(64, is_signed=True),
        lambda: draw.whole(64, is_signed=False),
        lambda: draw.number(),
        lambda: draw.text(),
        lambda: draw.take(draw.byte() % 64),
        lambda: draw.one_of((True, False)),
        lambda: [draw.whole(32, is_signed=True) % 64 for _ in range(draw.byte() % 64)],
        lambda: _ID,
        lambda: draw.one_of([reason.value for reason in FinishReason]),
    )
    return draw.one_of(makers)()
