from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi import errors
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
from edgephi.engine.stats import EngineStats
from edgephi.errors import EdgephiError, EngineFailed, InvalidRequest
from edgephi.isolation.messages import (
    Cancel,
    EngineFacts,
    Failed,
    Loaded,
    Loading,
    Log,
    ProtocolError,
    Report,
    SetLimits,
    Start,
    Submit,
    ToEngine,
    ToFront,
    decode_to_engine,
    decode_to_front,
    encode,
    error_of,
    event_from_wire,
    event_to_wire,
    failure_of,
)

COUNT = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)
ID = st.text(max_size=40).map(RequestId)
REASON = st.sampled_from(FinishReason)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(allow_nan=False),
    top_k=st.none() | st.integers(1, 100_000),
    seed=st.none() | st.integers(0, 2**63 - 1),
    logprobs=st.none() | st.integers(0, 20),
)
REQUEST = st.builds(
    EngineRequest,
    request_id=ID,
    prompt=st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple),
    max_tokens=st.integers(1, 2**31),
    sampling=SAMPLING,
    stop_token_ids=st.frozensets(st.integers(0, 2**31 - 1), max_size=4),
    client_id=st.text(max_size=20),
    deadline_s=st.none() | SECONDS,
)
LOGPROBS = st.builds(
    TokenLogprobs,
    logprob=st.floats(allow_nan=False),
    top=st.lists(st.tuples(COUNT, st.floats(allow_nan=False)), max_size=5).map(tuple),
)
EVENT = st.one_of(
    st.builds(PrefillProgress, request_id=ID, done_tokens=COUNT, total_tokens=COUNT),
    st.builds(TokenSampled, request_id=ID, token_id=COUNT, logprobs=st.none() | LOGPROBS),
    st.builds(
        Finished,
        request_id=ID,
        reason=REASON,
        usage=st.builds(Usage, prompt_tokens=COUNT, cached_tokens=COUNT, output_tokens=COUNT),
        timings=st.builds(Timings, queue_s=SECONDS, prefill_s=SECONDS, decode_s=SECONDS),
        error=st.none() | st.text(max_size=40),
    ),
)
LIMITS = st.builds(
    EngineLimits,
    max_running=COUNT,
    prefill_chunk_tokens=COUNT,
    mixed_chunk_tokens=COUNT,
    max_request_tokens=COUNT,
    keeps_cached_pages=st.booleans(),
    reason=st.none() | st.text(max_size=40),
)
STATS = st.builds(
    EngineStats,
    limits=LIMITS,
    **{
        name: SECONDS if name.endswith("_s_total") else COUNT
        for name in EngineStats.__dataclass_fields__
        if name != "limits"
    },
)
TO_ENGINE = st.one_of(
    st.builds(Start, protocol=COUNT, parent_pid=COUNT, heartbeat_s=SECONDS, options=st.binary(max_size=40)),
    st.builds(Submit, request=REQUEST),
    st.builds(Cancel, request_id=ID, reason=REASON),
    st.builds(SetLimits, limits=LIMITS),
)
FACTS = st.builds(EngineFacts, vocab_size=COUNT, context_tokens=COUNT, max_waiting=COUNT, max_limits=LIMITS)
TO_FRONT = st.one_of(
    st.builds(Loading, label=st.none() | st.text(max_size=20), done=COUNT, total=COUNT),
    st.builds(Loaded, protocol=COUNT, engine=FACTS, stats=STATS, facts=st.binary(max_size=40)),
    st.builds(Failed, kind=st.text(max_size=20), message=st.text(max_size=40)),
    st.builds(Log, level=COUNT, logger=st.text(max_size=20), text=st.text(max_size=40)),
    st.builds(
        Report,
        events=st.lists(EVENT.map(event_to_wire), max_size=4).map(tuple),
        stats=STATS,
        last_step_at=SECONDS,
        retry_after_ms=COUNT,
    ),
)


@given(TO_ENGINE)
def test_what_the_front_says_arrives_unchanged(message: ToEngine) -> None:
    """Every message to the engine is the same after a round trip."""
    assert decode_to_engine(encode(message)) == message


@given(TO_FRONT)
def test_what_the_engine_says_arrives_unchanged(message: ToFront) -> None:
    """Every message to the front is the same after a round trip."""
    assert decode_to_front(encode(message)) == message


@given(EVENT)
def test_an_event_arrives_unchanged(event: EngineEvent) -> None:
    """An event is the same after it was made short for the way."""
    assert event_from_wire(event_to_wire(event)) == event


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(frame: bytes) -> None:
    """No bytes raise anything but ProtocolError, on either side."""
    for decode in (decode_to_engine, decode_to_front):
        try:
            decode(frame)
        except ProtocolError:
            continue


@given(TO_ENGINE | TO_FRONT, st.data())
def test_damaged_messages_are_read_or_refused(message: ToEngine | ToFront, data: st.DataObject) -> None:
    """A message with one changed byte, or cut short, raises nothing but ProtocolError."""
    frame = bytearray(encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(frame), bytes(frame[: len(frame) // 2])):
        for decode in (decode_to_engine, decode_to_front):
            try:
                decode(damaged)
            except ProtocolError:
                continue


@pytest.mark.parametrize(
    "value",
    [
        {"type": "Cancel", "request_id": 7, "reason": "cancelled"},
        {"type": "Cancel", "request_id": "a", "reason": "because"},
        {"type": "Cancel", "request_id": "a"},
        {"type": "Cancel", "request_id": "a", "reason": "cancelled", "more": 1},
        {"type": "Explode"},
        {"type": "Loading"},  # of the other direction
        {"request_id": "a", "reason": "cancelled"},
        {"type": "SetLimits", "limits": {"max_running": "4"}},
        [],
        None,
    ],
)
def test_decoding_is_strict(value: Any) -> None:
    """A wrong type, a missing or an unknown field, an unknown or a foreign message is refused."""
    with pytest.raises(ProtocolError):
        decode_to_engine(msgspec.msgpack.encode(value))


def test_deep_nesting_is_refused() -> None:
    """A frame of a million nested lists is refused, and does not end the process."""
    with pytest.raises(ProtocolError):
        decode_to_front(b"\x91" * 1_000_000)


def _error_classes() -> list[type[EdgephiError]]:
    found = (getattr(errors, name) for name in dir(errors))
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, EdgephiError)]


@pytest.mark.parametrize("kind", _error_classes())
def test_an_error_keeps_its_class_and_its_message(kind: type[EdgephiError]) -> None:
    """An error made of a message arrives as itself; one that is about a request, as EngineFailed with its message."""
    try:
        error = kind("weights need 3 GiB; 2 GiB are free")
    except (TypeError, AttributeError):
        error = InvalidRequest(errors.FieldViolation("field", "is wrong"))
    arrived = error_of(failure_of(error))
    assert str(arrived) == str(error)
    assert type(arrived) in (type(error), EngineFailed)
    if kind.__init__ is Exception.__init__:
        assert type(arrived) is kind


def test_an_unknown_error_tells_only_its_class() -> None:
    """Of an error that is not ours, whose text may hold anything, only the class crosses."""
    arrived = error_of(failure_of(ValueError("secret")))
    assert type(arrived) is EngineFailed
    assert "ValueError" in str(arrived)
    assert "secret" not in str(arrived)


@pytest.mark.parametrize("kind", ["Exception", "SystemExit", "FieldViolation", "annotations", "no such", ""])
def test_a_foreign_class_is_not_made(kind: str) -> None:
    """A name that is no error of ours becomes EngineFailed."""
    assert type(error_of(Failed(kind=kind, message="x"))) is EngineFailed


def test_infinite_seconds_cross() -> None:
    """Floats that JSON could not hold cross too, for a log-probability may be minus infinity."""
    event = TokenSampled(
        request_id=RequestId("a"), token_id=1, logprobs=TokenLogprobs(logprob=-math.inf, top=((2, -math.inf),))
    )
    assert event_from_wire(event_to_wire(event)) == event
