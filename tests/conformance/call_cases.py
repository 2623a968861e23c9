"""Cases of calls as such: requests small, large, compressed and malformed, metadata, statuses, paths and sizes."""

from __future__ import annotations

import base64
from collections import Counter
from types import MappingProxyType

from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # publishes no stubs
from tests.conformance.rig import CHAT, COUNT, GET_MODEL, GET_PLAN, GO, Rig, reason_of, status_of

from edgephi.errors import Overloaded

MAX_TEXT_BYTES = 196_608
MAX_MESSAGE_BYTES = 256 << 10
# Large, and so many at once that the bound on text that waits to be tokenized has room for them.
MANY_TEXT_BYTES = 48 << 10
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP \U0001f608\t\n 100 % of %41 and %zz"
GZIP = MappingProxyType({"grpc.default_compression_algorithm": 2})


def empty_unary(rig: Rig) -> None:
    """A request without a field gets its response, over one channel as often as asked."""
    seen = rig.calls({"method": GET_PLAN}, {"method": GET_PLAN})
    for call in seen:
        assert (call.code, call.details) == ("OK", "")
        plan = call.messages[0].get("plan", {})
        assert (plan.get("context_tokens"), plan.get("max_running")) == (512, 4)


def large_unary(rig: Rig) -> None:
    """The longest text that may be sent is taken whole."""
    short, long = (rig.call(COUNT, {"prompt": {"fill": size}}) for size in (1000, MAX_TEXT_BYTES))
    assert (short.code, long.code) == ("OK", "OK")
    assert long.messages[0]["tokens"] > 190 * short.messages[0]["tokens"]
    assert long.messages[0]["context_tokens"] == 512


def client_compressed_unary(rig: Rig) -> None:
    """A compressed request is refused with UNIMPLEMENTED; what is not compressed is answered on."""
    seen = rig.call(COUNT, {"prompt": {"fill": 2000}}, options=dict(GZIP))
    assert seen.code == "UNIMPLEMENTED"
    assert seen.messages == []
    assert rig.call(COUNT, {"prompt": "go"}).code == "OK"


def client_compressed_bomb(rig: Rig) -> None:
    """Sixteen megabytes in sixteen kilobytes are refused unopened, with the very status of any compressed request."""
    seen = rig.call(COUNT, {"prompt": {"fill": 16 << 20}}, options=dict(GZIP))
    assert seen.code == "UNIMPLEMENTED"
    assert rig.call(COUNT, {"prompt": "go"}).code == "OK"


def custom_metadata(rig: Rig) -> None:
    """The caller's id comes back with the status, not before it; binary and unknown metadata do no harm."""
    metadata = [["x-request-id", "robot-7.arm_2"], ["x-other", "a, b"], ["x-trace-bin", "qwD/+w=="]]
    seen = rig.calls(
        {"method": GET_PLAN, "metadata": metadata},
        {"method": CHAT, "requests": [dict(GO)], "metadata": metadata},
        {"method": GET_MODEL, "requests": [{"name": "models/other"}], "metadata": metadata},
    )
    assert [call.code for call in seen] == ["OK", "OK", "NOT_FOUND"]
    for call in seen:
        assert call.trailer("x-request-id") == "robot-7.arm_2"
        assert not [key for key, _ in call.initial if key.startswith("x-")]
    made = rig.call(GET_PLAN, metadata=[["x-request-id", "not one, of ours"]]).trailer("x-request-id")
    assert len(made) == 32


def status_code_and_message(rig: Rig) -> None:
    """Unary calls and streams that fail bring code, text and the typed details of one error."""
    unary = rig.call(GET_MODEL, {"name": "models/other"})
    stream = rig.call(CHAT, {**GO, "model": "other"})
    for seen, text in ((unary, "is not on this server"), (stream, "is not served here")):
        assert (seen.code, seen.messages) == ("NOT_FOUND", [])
        assert text in seen.details
        assert reason_of(seen) == "MODEL_NOT_FOUND"
    bad = rig.call(CHAT, {**GO, "sampling": {"top_p": 2, "max_tokens": 0}})
    assert bad.code == "INVALID_ARGUMENT"
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status_of(bad).details)
    assert {violation.field for violation in request.field_violations} == {"sampling.top_p", "sampling.max_tokens"}


def special_status_message(rig: Rig) -> None:
    """White space, characters beyond ASCII and percent signs in the text of a status arrive as they are."""
    rig.running.generator.faults.append(Overloaded(SPECIAL, retry_after_ms=123))
    seen = rig.call(CHAT, GO)
    assert (seen.code, seen.details) == ("RESOURCE_EXHAUSTED", SPECIAL)
    assert status_of(seen).message == SPECIAL
    assert seen.trailer("grpc-retry-pushback-ms") == "123"
    name = rig.call(GET_MODEL, {"name": "models/Tür-☺-\U0001f608-%20"})
    assert name.code == "NOT_FOUND"
    assert "'models/Tür-☺-\U0001f608-%20'" in name.details


def unimplemented_method(rig: Rig) -> None:
    """A method that a service does not have is UNIMPLEMENTED, and the connection goes on."""
    seen = rig.calls({"method": "/edgephi.v1.GenerationService/Embed", "raw": "CgJnbw=="}, {"method": GET_PLAN})
    assert [call.code for call in seen] == ["UNIMPLEMENTED", "OK"]


def unimplemented_service(rig: Rig) -> None:
    """A service that is not there is UNIMPLEMENTED, one of another version too."""
    for service in ("no.such.Service", "edgephi.v2.GenerationService", "grpc.testing.TestService"):
        assert rig.call(f"/{service}/Chat", raw="").code == "UNIMPLEMENTED"


def bad_path(rig: Rig) -> None:
    """A path that is not one of a method is UNIMPLEMENTED, and the connection goes on."""
    paths = ("/", "//", "/Chat", f"{CHAT}/", f"{CHAT}/x", CHAT.lower(), f"/{CHAT}")
    seen = rig.calls(*({"method": path, "raw": ""} for path in paths), {"method": GET_PLAN})
    assert [call.code for call in seen] == ["UNIMPLEMENTED"] * len(paths) + ["OK"]


def malformed_request(rig: Rig) -> None:
    """Bytes that are not the message of a method are INVALID_ARGUMENT, for streams and unary calls."""
    for method in (COUNT, CHAT):
        seen = rig.call(method, raw="//////8=")
        assert (seen.code, reason_of(seen)) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


def max_message_size(rig: Rig) -> None:
    """A message as long as may be is read; with one byte more it is RESOURCE_EXHAUSTED, and the connection goes on."""
    seen = rig.calls(
        {"method": COUNT, "raw": _padded(MAX_MESSAGE_BYTES)},
        {"method": COUNT, "raw": _padded(MAX_MESSAGE_BYTES + 1)},
        {"method": CHAT, "raw": _padded(MAX_MESSAGE_BYTES + 1)},
        {"method": COUNT, "requests": [{"prompt": "go"}]},
    )
    assert [call.code for call in seen] == ["OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "OK"]


def concurrent_large_unary(rig: Rig) -> None:
    """Many large calls at once on one connection are all answered, and alike, though few may run at once."""
    request = {"prompt": {"fill": MANY_TEXT_BYTES}}
    seen = rig.calls({"method": COUNT, "requests": [request], "copies": rig.num_copies})
    assert len(seen) == rig.num_copies > rig.running.settings.max_streams
    assert Counter((call.code, call.details) for call in seen) == {("OK", ""): rig.num_copies}
    (expected,) = rig.call(COUNT, request).messages
    assert all(call.messages == [expected] for call in seen)
    assert len({call.trailer("x-request-id") for call in seen}) == rig.num_copies


def concurrent_short_unary(rig: Rig) -> None:
    """Many short calls at once on one connection are all answered: a place that is free is free for the next call."""
    seen = rig.calls({"method": COUNT, "requests": [{"prompt": "go"}], "copies": rig.num_copies})
    assert len(seen) == rig.num_copies > rig.running.settings.max_streams
    assert Counter((call.code, call.details) for call in seen) == {("OK", ""): rig.num_copies}


def _padded(num_bytes: int) -> str:
    """Return a request to count tokens of so many bytes, in base 64: a prompt, and a field that is nobody's."""
    head = b"\x1a\x02go\x7a"  # field 3, "go"; then field 15 with three bytes of length
    size = num_bytes - len(head) - 3
    length = bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))
    return base64.b64encode(head + length + bytes(size)).decode()
