"""The blocking client against a real server on a thread of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgephi.client import (
    AccessRefused,
    ChatMessage,
    ChatStream,
    Client,
    DeadlinePassed,
    Delta,
    FinalInfo,
    ModelUnknown,
    PrefillProgress,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnavailable,
    StreamCut,
    TlsOptions,
)
from edgephi.client.options import service_config
from edgephi.errors import ConfigError, EngineFailed, IntegrityError, InvalidRequest, Overloaded
from edgephi.server.tokens import add_token
from edgephi.v1 import device_pb2, generation_pb2, generation_service_pb2

ANSWER = "The robot moves to the left and stops at the door."
# Takes several seconds at the delays used below, so that only a cancelled request can be gone before.
LONG_ANSWER = " ".join([ANSWER] * 12)


def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_a_chat_is_text_and_then_its_end(serve_in_thread: Any) -> None:
    """Iterating gives the text; afterwards final has reason, usage and timings."""
    with serve_in_thread() as running, Client(running.target) as client:
        stream = client.chat("Where is the robot?")
        assert "".join(stream) == ANSWER
        final = stream.final
        assert final is not None
        assert (final.reason, final.matched_stop, final.model) == ("stop", None, "models/tiny-phi3")
        assert final.usage.output_tokens > 2
        assert final.timings.time_to_first_token_s is not None
        speed = final.timings.decode_tokens_per_s(final.usage)
        assert speed is not None
        assert speed > 0
        assert list(stream) == [], "an ended stream has no more text"


def test_messages_sampling_and_all_events(serve_in_thread: Any) -> None:
    """A chat of several messages takes sampling by name, and events() gives progress, deltas and the end in order."""
    with serve_in_thread() as running, Client(running.target) as client:
        chat = [ChatMessage("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Go")]
        events = list(client.chat(chat, max_tokens=3, logprobs=1, temperature=0.5, seed=7).events())
        assert isinstance(events[0], PrefillProgress)
        assert isinstance(events[-1], FinalInfo)
        assert events[-1].reason == "length"
        tokens = [token for event in events if isinstance(event, Delta) for token in event.logprobs]
        assert [len(token.top) for token in tokens] == [1, 1, 1]
        stopped = client.chat("Go", stop=("left", "door"))
        assert stopped.read() == "The robot moves to the "
        assert stopped.final is not None
        assert stopped.final.matched_stop == "left"
        assert client.chat("Go", stop="left").read() == "The robot moves to the "


def test_every_other_method(serve_in_thread: Any) -> None:
    """complete, count_tokens, models, model, device, plan, watch and health answer."""
    with serve_in_thread() as running, Client(running.target) as client:
        assert client.complete("The door").read().strip() == ANSWER
        assert client.count_tokens("Hi") > client.count_tokens(prompt="Hi") > 1
        (model,) = client.models()
        assert client.model(model.name) == model
        assert client.device().cpu.arch
        assert client.plan().kind == device_pb2.PLAN_KIND_STATIC
        states = client.watch(0.1)
        assert next(states).is_ready
        assert next(states).num_pages == 128
        states.close()  # type: ignore[attr-defined]  # a generator, told as an iterator
        assert client.health()
        assert client.health("edgephi.v1.GenerationService")
        assert client.health("liveness")
        assert not client.health("no.such.Service")
        client.wait_ready(1)


def test_cancel_ends_the_iteration_and_frees_the_pages(serve_in_thread: Any) -> None:
    """After cancel a for loop just ends, final stays None, and the server has dropped the request."""
    with serve_in_thread(step_delay_s=0.02, script=LONG_ANSWER) as running, Client(running.target) as client:
        stream = client.chat("Where is the robot?")
        for _ in stream:
            stream.cancel()
        assert stream.final is None
        until(running.is_idle, 1.0)
        with client.chat("Where is the robot?") as left_early:
            next(iter(left_early))
        until(running.is_idle, 1.0)
        from_elsewhere = client.chat("Where is the robot?")
        threading.Timer(0.1, from_elsewhere.cancel).start()
        assert len(from_elsewhere.read()) < len(LONG_ANSWER)
        until(running.is_idle, 1.0)


def test_refusals_carry_their_violations(serve_in_thread: Any) -> None:
    """A refused request names its fields, and what cannot even be sent is refused before."""
    with serve_in_thread() as running, Client(running.target) as client:
        with pytest.raises(RequestRefused) as caught:
            client.chat("Go", temperature=3, top_p=0).read()
        assert {violation.field for violation in caught.value.violations} == {"sampling.temperature", "sampling.top_p"}
        assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert caught.value.request_id
        assert caught.value.retry_after_s is None
        with pytest.raises(RequestRefused) as too_long:
            client.chat("robot " * 600).read()
        assert too_long.value.reason == "PROMPT_TOO_LONG"
        assert too_long.value.metadata["contextTokens"] == "512"
        with pytest.raises(ModelUnknown):
            client.chat("Go", model="other").read()
        with pytest.raises(InvalidRequest, match=r"sampling\.top_k"):
            client.chat("Go", top_k=-1)
        with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role"):
            client.chat([("robot", "Go")])  # type: ignore[list-item]  # what is tested
        with pytest.raises(InvalidRequest, match="either"):
            client.count_tokens()


def test_a_busy_server_is_tried_again_after_its_delay(serve_in_thread: Any) -> None:
    """Refusals do not commit the call: gRPC retries by the server's own delay, and can_retry=False does not."""
    with serve_in_thread() as running:
        faults = [Overloaded("full", retry_after_ms=30) for _ in range(2)]
        with Client(running.target) as client:
            running.generator.faults = list(faults)
            started = time.monotonic()
            assert client.chat("Go").read() == ANSWER
            assert time.monotonic() - started < 0.5, "the policy's own backoff would be longer"
        with Client(running.target, can_retry=False) as hasty:
            running.generator.faults = list(faults)
            with pytest.raises(ServerBusy) as caught:
                hasty.chat("Go").read()
            assert caught.value.retry_after_s == pytest.approx(0.03)


def test_failures_of_the_server_are_told_apart(serve_in_thread: Any) -> None:
    """An unusable model and a bug are ServerFailed, a failed engine is ServerUnavailable."""
    with serve_in_thread() as running, Client(running.target, can_retry=False) as client:
        for fault, kind, reason in (
            (IntegrityError("x"), ServerFailed, "MODEL_DAMAGED"),
            (ValueError("x"), ServerFailed, "INTERNAL"),
            (EngineFailed("x"), ServerUnavailable, "ENGINE_FAILED"),
        ):
            running.generator.faults = [fault]
            with pytest.raises(kind) as caught:
                client.chat("Go").read()
            assert caught.value.reason == reason


def test_time_limits_end_a_call(serve_in_thread: Any) -> None:
    """timeout_s of the client and of one call both end it with DeadlinePassed."""
    with serve_in_thread(step_delay_s=0.05, script=LONG_ANSWER) as running:
        with Client(running.target, timeout_s=0.2) as client, pytest.raises(DeadlinePassed):
            client.chat("Go").read()
        with Client(running.target) as client, pytest.raises(DeadlinePassed):
            client.chat("Go", timeout_s=0.2).read()
        until(running.is_idle, 1.0)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """Without a server, calls and wait_ready raise ServerUnavailable in the time given."""
    with Client("127.0.0.1:1", can_retry=False) as client:
        with pytest.raises(ServerUnavailable):
            client.chat("Go").read()
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match="cannot be reached"):
            client.wait_ready(0.3)
        assert time.monotonic() - started < 2


def test_wait_ready_waits_for_the_first_token(serve_in_thread: Any) -> None:
    """A loading server is waited for; one that stays loading is named as not ready."""
    with serve_in_thread(step_delay_s=0.8, is_ready=False) as running, Client(running.target) as client:
        assert not client.health()
        with pytest.raises(ServerUnavailable, match="is not ready"):
            client.wait_ready(0.1)
        client.wait_ready(10)
        assert client.health()


class _Call:
    """Responses without a server: what a cut connection leaves."""

    def __init__(self, *responses: generation_service_pb2.ChatResponse) -> None:
        self._responses = responses

    def __iter__(self) -> Iterator[generation_service_pb2.ChatResponse]:
        return iter(self._responses)

    def cancel(self) -> None:
        """Do nothing."""


def test_a_stream_without_an_end_is_cut() -> None:
    """Text without a final message raises StreamCut after the text, and unknown events are skipped."""
    delta = generation_service_pb2.ChatResponse(delta=generation_pb2.Delta(text="half"))
    newer = generation_service_pb2.ChatResponse()
    stream = ChatStream(_Call(newer, delta))
    texts = iter(stream)
    assert next(texts) == "half"
    with pytest.raises(StreamCut):
        next(texts)
    assert stream.final is None
    with pytest.raises(StreamCut):
        ChatStream(_Call()).read()


def test_a_lost_connection_cuts_the_stream(serve_in_thread: Any) -> None:
    """An answer whose engine fails, or whose server goes away, after its first text is a StreamCut."""
    with serve_in_thread(step_delay_s=0.05, script=LONG_ANSWER) as running, Client(running.target) as client:
        texts = iter(client.chat("Where is the robot?"))
        next(texts)
        running.fail_next_forward(RuntimeError("broken"))
        with pytest.raises(StreamCut) as caught:
            list(texts)
        assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert caught.value.retry_after_s == 2.0


def test_two_threads_share_a_client(serve_in_thread: Any) -> None:
    """Streams of one client may be read by different threads at once."""
    with serve_in_thread(step_delay_s=0.005) as running, Client(running.target) as client:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(client.chat("Go").read())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [ANSWER] * 4
        assert running.is_idle()


def test_a_token_needs_tls() -> None:
    """A token is never sent unencrypted, and TLS files that cannot be used are named."""
    with pytest.raises(ConfigError, match="tls"):
        Client(token="t")
    with pytest.raises(ConfigError, match="absent"):
        Client(tls=TlsOptions(ca=Path("absent")))
    with pytest.raises(ConfigError, match="belong together"):
        Client(tls=TlsOptions(cert=Path("c")))


def test_tls_by_options(serve_in_thread: Any, tmp_path: Path) -> None:
    """A client that trusts the authority talks to a TLS server, by another name if told so, and others do not."""
    (tmp_path / "san").write_text("subjectAltName=DNS:robot.local")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key -out cert"
    arguments = [*command.split(), "-addext", "subjectAltName=DNS:robot.local"]
    subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True)
    cert, key = tmp_path / "cert", tmp_path / "key"
    with serve_in_thread(tls_cert=cert, tls_key=key) as running:
        trusting = TlsOptions(ca=cert, server_name="robot.local")
        with Client(running.target, tls=trusting, token="t") as client:
            assert client.chat("Go").read() == ANSWER
        wrong_name = Client(running.target, tls=TlsOptions(ca=cert), can_retry=False)
        with wrong_name, pytest.raises(ServerUnavailable):
            wrong_name.models()


def test_importing_the_client_is_light() -> None:
    """A robot that imports the client loads neither NumPy nor TVM nor the server nor the engine."""
    code = (
        "import sys, edgephi.client\n"
        "heavy = {'numpy', 'tvm', 'tokenizers', 'structlog', 'prometheus_client', 'msgspec', 'yaml'}\n"
        "found = heavy & set(sys.modules)\n"
        "found |= {m for m in sys.modules if m.startswith('edgephi.')\n"
        "          and m.split('.')[1] not in ('client', 'v1', 'errors')}\n"
        "sys.exit(repr(found) if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_service_config_is_accepted_and_names_every_service() -> None:
    """The retry policy covers all services of the contract and gRPC takes it."""
    config = service_config()
    names = {entry["service"] for method in config["methodConfig"] for entry in method["name"]}
    assert names == {f"edgephi.v1.{name}Service" for name in ("Generation", "Model", "Device")}
    codes = set(config["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"])
    assert codes <= {code.name for code in grpc.StatusCode}


def test_files_and_token_by_name(serve_in_thread: Any, pki: Any, tmp_path: Path) -> None:
    """Client(ca=..., cert=..., key=..., token=...) is enough for a server that asks for all of it."""
    secret, _ = add_token(tmp_path / "tokens.json", "robot")
    robot: Any = {kind: str(path) for kind, path in pki.client().items()}
    with serve_in_thread(**pki.server(), tls_client_ca=pki.ca, tokens=tmp_path / "tokens.json") as running:
        with Client(running.target, ca=str(pki.ca), **robot, token=secret) as client:
            assert client.chat("Go").read() == ANSWER
        with Client(running.target, ca=pki.ca, **robot, token=secret[:-1]) as client:
            with pytest.raises(AccessRefused, match="not known here") as caught:
                client.chat("Go").read()
            assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        stranger = Client(running.target, ca=pki.ca, can_retry=False)
        with stranger, pytest.raises(ServerUnavailable, match="wants a client certificate"):
            stranger.wait_ready(0.5)
    with pytest.raises(ConfigError, match="either these or that"):
        Client(ca=pki.ca, tls=TlsOptions(ca=pki.ca))
    for bad in ("", "a b", "a\nb", "\u00e4"):
        with pytest.raises(ConfigError, match="characters that no token has") as wrong:
            Client(ca=pki.ca, token=bad)
        assert not bad or bad not in str(wrong.value)
