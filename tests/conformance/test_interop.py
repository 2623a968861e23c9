"""gRPC's interoperability cases against our server, from two client stacks, each with a server that gets it wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.conformance import call_cases, service_cases, stream_cases, wrong
from tests.conformance.rig import Expect, Rig
from tests.conformance.stacks import STACKS, Stack
from tests.server.conftest import Pki, ServeInThread

Arguments = Mapping[str, Any] | Callable[[Pki], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """
    One case.

    Attributes:
        expect: What is expected.
        spoil: Makes servers do it wrong, and returns arguments that do.
        arguments: Those of the server, or what makes them.
    """

    expect: Expect
    spoil: Callable[[pytest.MonkeyPatch], Mapping[str, Any]]
    arguments: Arguments = field(default_factory=dict)

    def server_arguments(self, pki: Pki) -> Mapping[str, Any]:
        """Return the arguments of a server."""
        return self.arguments(pki) if callable(self.arguments) else self.arguments


SLOW = {"step_delay_s": 0.02, "script": stream_cases.LONG_ANSWER}
BRISK = {"step_delay_s": 0.001, "script": stream_cases.LONG_ANSWER}
CASES = {
    case.expect.__name__: case
    for case in (
        Case(call_cases.empty_unary, wrong.empty_plan),
        Case(call_cases.large_unary, wrong.small_messages),
        Case(call_cases.client_compressed_unary, wrong.compression),
        Case(call_cases.client_compressed_bomb, wrong.compression),
        Case(call_cases.custom_metadata, wrong.request_id),
        Case(call_cases.status_code_and_message, wrong.code),
        Case(call_cases.special_status_message, wrong.ascii_text),
        Case(call_cases.unimplemented_method, wrong.answer_to_anything),
        Case(call_cases.unimplemented_service, wrong.answer_to_anything),
        Case(call_cases.bad_path, wrong.answer_to_anything),
        Case(call_cases.malformed_request, wrong.malformed),
        Case(call_cases.max_message_size, wrong.large_messages),
        Case(call_cases.concurrent_large_unary, wrong.little_room),
        Case(call_cases.concurrent_short_unary, wrong.early_refusal),
        Case(stream_cases.server_streaming, wrong.text),
        Case(stream_cases.empty_stream, wrong.no_reflection),
        Case(stream_cases.ping_pong, wrong.no_reflection),
        Case(stream_cases.timeout_on_sleeping_server, wrong.no_cancel, SLOW),
        Case(stream_cases.cancel_after_begin, wrong.no_cancel, SLOW),
        Case(stream_cases.cancel_after_first_response, wrong.no_cancel, SLOW),
        Case(stream_cases.slow_reader, wrong.lost_tokens, BRISK),
        Case(stream_cases.absent_reader, wrong.endless_buffer, BRISK),
        Case(service_cases.health, wrong.health),
        Case(service_cases.reflection, wrong.no_reflection),
        Case(service_cases.per_rpc_credentials, wrong.open_door, service_cases.tls_arguments),
    )
}
CONCURRENT = ("concurrent_large_unary", "concurrent_short_unary")
both_stacks = pytest.mark.parametrize("stack", STACKS, indirect=True)


@both_stacks
@pytest.mark.parametrize("name", CASES)
def test_a_client_sees_what_the_case_expects(serve_in_thread: ServeInThread, pki: Pki, name: str, stack: Stack) -> None:
    """Each case goes as gRPC's clients expect it to, whichever stack they are of."""
    case = CASES[name]
    with serve_in_thread(**case.server_arguments(pki)) as running:
        case.expect(Rig(stack, running, pki, num_copies=100))


@both_stacks
@pytest.mark.parametrize("name", CASES)
def test_a_server_that_gets_it_wrong_is_found(
    serve_in_thread: ServeInThread, pki: Pki, name: str, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: each case fails, by an expectation and not by a crash, where the server is made wrong."""
    case = CASES[name]
    arguments = {**case.server_arguments(pki), **case.spoil(monkeypatch)}
    with serve_in_thread(**arguments) as running, pytest.raises(AssertionError) as caught:
        case.expect(Rig(stack, running, pki, num_copies=500))
    assert "client failed" not in str(caught.value)
    assert "client said nothing" not in str(caught.value)


@both_stacks
@pytest.mark.slow
@pytest.mark.parametrize("name", CONCURRENT)
def test_a_thousand_calls_at_once(serve_in_thread: ServeInThread, pki: Pki, name: str, stack: Stack) -> None:
    """The long form of the cases of many calls: a thousand at once on one connection, all answered."""
    with serve_in_thread() as running:
        CASES[name].expect(Rig(stack, running, pki, num_copies=1000))
