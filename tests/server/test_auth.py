"""The door of a real server: who is let in, to what, under which name, and what is never written down."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import generate_latest

from edgephi.client import AccessRefused, AsyncClient
from edgephi.errors import ConfigError
from edgephi.server import auth
from edgephi.server.app import SERVICES
from edgephi.server.auth import ADMIN_UNIT, METHOD_SCOPES, AuthInterceptor
from edgephi.server.calls import current_call
from edgephi.server.tokens import Scope, add_token, revoke_token
from edgephi.v1 import device_service_pb2, generation_service_pb2, model_service_pb2

ANSWER = "The robot moves to the left and stops at the door."


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A file of tokens that does not exist yet."""
    return tmp_path / "config" / "tokens.json"


async def _code(target: str, pki: Any, token: str | None = None, **client: Any) -> str:
    """Return how a cheap call ends."""
    async with AsyncClient(target, ca=pki.ca, token=token, can_retry=False, **client) as asking:
        try:
            await asking.models()
        except AccessRefused as error:
            return error.code
    return "OK"


async def test_a_call_needs_a_token_that_is_known(serve: Any, pki: Any, tokens: Path) -> None:
    """With tokens a call needs one that is known, exactly; without them every call is let in."""
    secret, _ = add_token(tokens, "robot")
    async with serve(**pki.server(), tokens=tokens) as running:
        assert await _code(running.target, pki) == "UNAUTHENTICATED"
        assert await _code(running.target, pki, secret[:-1]) == "UNAUTHENTICATED"
        assert await _code(running.target, pki, secret + "A") == "UNAUTHENTICATED"
        assert await _code(running.target, pki, secret) == "OK"
        async with AsyncClient(running.target, ca=pki.ca, token=secret) as client:
            assert await client.chat("Go").read() == ANSWER
            stream = client.watch(0.1)
            assert (await anext(stream)).is_ready
            await stream.aclose()  # type: ignore[attr-defined]  # a generator, typed as an iterator
        assert running.is_idle()
    async with serve(**pki.server()) as running:  # the same calls with the door open
        assert await _code(running.target, pki) == "OK"


async def test_without_the_interceptor_everyone_is_let_in(
    serve: Any, pki: Any, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: it is the interceptor that refuses; with its check taken out the same call succeeds."""
    add_token(tokens, "robot")
    monkeypatch.setattr(AuthInterceptor, "_caller", lambda self, context: None)
    async with serve(**pki.server(), tokens=tokens) as running:
        assert await _code(running.target, pki) == "OK"


async def test_a_refusal_says_what_to_do(serve: Any, pki: Any, tokens: Path) -> None:
    """The refusal is final, has the reason and a request id, and tells how to send a token."""
    add_token(tokens, "robot")
    async with serve(**pki.server(), tokens=tokens) as running:
        async with AsyncClient(running.target, ca=pki.ca) as client:
            with pytest.raises(AccessRefused, match="EDGEPHI_TOKEN") as caught:
                await client.chat("Go").read()
        assert caught.value.reason == "UNAUTHENTICATED"
        (line,) = await running.wait_finished("Chat", 1)
        assert line["code"] == "UNAUTHENTICATED"
        assert line["request_id"] == caught.value.request_id
        assert running.generator.num_started == 1  # the warm-up alone


@pytest.mark.parametrize(
    "sent",
    [
        ("Bearer",),
        ("Bearer ",),
        ("Basic {}",),
        ("{}",),
        ("Bearer {}", "Bearer {}"),
        ("Bearer  x{}",),
        ("Bearer {},Bearer {}",),
    ],
)
async def test_other_forms_of_the_header_are_refused(serve: Any, pki: Any, tokens: Path, sent: tuple[str, ...]) -> None:
    """Only one header of the form 'Bearer TOKEN' is taken, in any case of the word."""
    secret, _ = add_token(tokens, "robot")
    trust = grpc.ssl_channel_credentials(pki.ca.read_bytes())
    async with (
        serve(**pki.server(), tokens=tokens) as running,
        grpc.aio.secure_channel(running.target, trust) as channel,
    ):
        call = channel.unary_unary("/edgephi.v1.ModelService/ListModels", None, None)
        await call(b"", metadata=(("authorization", f"bEARER {secret}"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=[("authorization", text.replace("{}", secret)) for text in sent])
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert secret not in str(caught.value)


async def test_a_revoked_token_is_refused_from_the_next_call_on(serve: Any, pki: Any, tokens: Path) -> None:
    """Revoking, and adding, need no restart; a stream that runs goes on."""
    secret, _ = add_token(tokens, "robot")
    async with (
        serve(**pki.server(), tokens=tokens) as running,
        AsyncClient(running.target, ca=pki.ca, token=secret, can_retry=False) as client,
    ):
        go_on = running.backend.hold_after(8)
        pieces = aiter(client.chat("Go"))
        text = await anext(pieces)
        other, _ = add_token(tokens, "other")
        revoke_token(tokens, "robot")
        assert await _code(running.target, pki, secret) == "UNAUTHENTICATED"
        assert await _code(running.target, pki, other) == "OK"
        assert not running.is_idle()
        go_on.set()
        assert text + "".join([piece async for piece in pieces]) == ANSWER
        revoke_token(tokens, "other")
        assert await _code(running.target, pki, other) == "UNAUTHENTICATED"


async def test_an_expired_token_is_refused_by_name(serve: Any, pki: Any, tokens: Path) -> None:
    """A token past its time is refused, and its holder is told which and since when."""
    keeper, _ = add_token(tokens, "keeper")
    late, _ = add_token(tokens, "late", lifetime=timedelta(seconds=-1))
    async with serve(**pki.server(), tokens=tokens) as running:
        async with AsyncClient(running.target, ca=pki.ca, token=late) as client:
            with pytest.raises(AccessRefused, match="'late' expired at 20"):
                await client.models()
        assert await _code(running.target, pki, keeper) == "OK"


async def test_a_scope_that_is_not_enough_is_refused(
    serve: Any, pki: Any, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that needs admin refuses a token for inference with both scopes, and takes one for admin."""
    infer, _ = add_token(tokens, "robot")
    admin, _ = add_token(tokens, "boss", scope=Scope.ADMIN)
    listed = {name: scope for name, scope in METHOD_SCOPES.items() if "ListModels" not in name}
    monkeypatch.setattr(auth, "METHOD_SCOPES", listed)  # a method that is not in the table needs admin
    async with serve(**pki.server(), tokens=tokens) as running:
        assert await _code(running.target, pki, infer) == "PERMISSION_DENIED"
        assert await _code(running.target, pki, admin) == "OK"
        async with AsyncClient(running.target, ca=pki.ca, token=infer) as client:
            with pytest.raises(AccessRefused, match=r"'robot' has the scope infer, and .*ListModels needs admin"):
                await client.models()
            assert await client.chat("Go").read() == ANSWER


def test_every_method_of_the_contract_is_in_the_table() -> None:
    """No method of ours is left to the default, and the table names no method that is not there."""
    modules = (generation_service_pb2, model_service_pb2, device_service_pb2)
    methods = {
        f"{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    ours = {name: scope for name, scope in METHOD_SCOPES.items() if name.split("/")[0] in SERVICES}
    assert set(ours) == methods
    assert None not in ours.values()


async def test_health_is_open_and_reflection_is_not(serve: Any, pki: Any, tokens: Path) -> None:
    """Probes need no token; the description of the services needs one like any call."""
    secret, _ = add_token(tokens, "robot")
    trust = grpc.ssl_channel_credentials(pki.ca.read_bytes())

    async def describe(metadata: Any) -> int:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), metadata=metadata)
        (response,) = [response async for response in call]
        return len(response.list_services_response.service)

    async with (
        serve(**pki.server(), tokens=tokens) as running,
        grpc.aio.secure_channel(running.target, trust) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await describe(None)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await describe((("authorization", f"Bearer {secret}"),)) >= len(SERVICES)


async def test_a_certificate_names_its_holder(serve: Any, pki: Any, tokens: Path) -> None:
    """With client certificates no token is needed; the common name is the client, and a unit makes it an admin."""
    add_token(tokens, "unused")
    seen: list[tuple[str, str]] = []
    async with serve(**pki.server(), tls_client_ca=pki.ca, tokens=tokens) as running:
        for name, unit in (("robot", None), ("boss", ADMIN_UNIT)):
            assert await _code(running.target, pki, **pki.client(name, unit=unit)) == "OK"
            line = (await running.wait_finished("ListModels", len(seen) + 1))[-1]
            seen.append((line["client"], line["code"]))
        assert seen == [("robot", "OK"), ("boss", "OK")]


async def test_the_unit_of_a_certificate_decides_about_admin(
    serve: Any, pki: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method for admins is open to certificates of the admins' unit; a name that spells the unit does not help."""
    monkeypatch.setattr(auth, "METHOD_SCOPES", {})
    async with serve(**pki.server(), tls_client_ca=pki.ca) as running:
        assert await _code(running.target, pki, **pki.client("boss", unit=ADMIN_UNIT)) == "OK"
        for name, unit in (("robot", None), ("clerk", "office"), (f"x,OU={ADMIN_UNIT}", None)):
            assert await _code(running.target, pki, **pki.client(name, unit=unit)) == "PERMISSION_DENIED"


async def test_a_bad_token_is_refused_beside_a_good_certificate(serve: Any, pki: Any, tokens: Path) -> None:
    """A token that is sent decides alone, and gives the call its name."""
    secret, _ = add_token(tokens, "by-token")
    robot = pki.client()
    async with serve(**pki.server(), tls_client_ca=pki.ca, tokens=tokens) as running:
        assert await _code(running.target, pki, "edgephi_wrong", **robot) == "UNAUTHENTICATED"
        assert await _code(running.target, pki, secret, **robot) == "OK"
        assert (await running.wait_finished("ListModels", 2))[-1]["client"] == "by-token"


async def test_the_call_knows_its_client(serve: Any, pki: Any, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers find the token's name in the call's record, and where nobody is asked the address, not the port."""
    secret, _ = add_token(tokens, "robot")
    seen: list[str] = []

    async def list_models(self: Any, request: Any, context: Any) -> Any:
        seen.append(current_call().client_id)
        return model_service_pb2.ListModelsResponse()

    monkeypatch.setattr("edgephi.server.model.ModelHandler.ListModels", list_models)
    async with serve(**pki.server(), tokens=tokens) as running:
        assert await _code(running.target, pki, secret) == "OK"
    async with serve(**pki.server()) as running:
        assert await _code(running.target, pki) == "OK"
    assert seen == ["robot", "127.0.0.1"]


async def test_a_token_is_never_written_down(
    serve: Any, pki: Any, tokens: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No token or half of one is in the log, a metric, an error or the file, whatever way its call ends."""
    good, _ = add_token(tokens, "robot")
    late, _ = add_token(tokens, "late", lifetime=timedelta(seconds=-1))
    unknown = "edgephi_" + "canary" * 8
    said: list[str] = []
    async with serve(**pki.server(), tokens=tokens) as running:
        for token in (good, late, unknown):
            async with AsyncClient(running.target, ca=pki.ca, token=token, can_retry=False) as client:
                try:
                    await client.chat("Go").read()
                    await client.chat("Go", temperature=99.0).read()
                except Exception as error:  # noqa: BLE001 - whatever is said is searched
                    said += [str(error), repr(error)]
        tokens.write_text("{", encoding="utf-8")
        assert await _code(running.target, pki, good) == "OK"  # the broken file is told in the log
        revoked = await _code(running.target, pki, unknown)
        assert revoked == "UNAUTHENTICATED"
        said += [repr(running.log), generate_latest(running.server._observability.metrics.registry).decode()]
    output = capfd.readouterr()
    text = "\n".join([*said, output.out, output.err])
    assert "tokens.unreadable" in text
    assert "robot" in text
    for token in (good, late, unknown):
        secret = token.removeprefix("edgephi_")
        assert secret[:20] not in text
        assert secret[-20:] not in text


async def test_a_store_without_tokens_stops_the_start(serve: Any, pki: Any, tokens: Path) -> None:
    """A file that is absent, empty of tokens or damaged is refused with the command that helps."""
    with pytest.raises(ConfigError, match=r"cannot be read .*edgephi token add NAME --tokens"):
        async with serve(**pki.server(), tokens=tokens):
            pass
    add_token(tokens, "robot")
    revoke_token(tokens, "robot")
    with pytest.raises(ConfigError, match="holds no token"):
        async with serve(**pki.server(), tokens=tokens):
            pass
    tokens.write_bytes(b'{"version": 2}')
    with pytest.raises(ConfigError, match="is not what `edgephi token add` writes"):
        async with serve(**pki.server(), tokens=tokens):
            pass


async def test_the_network_is_served_behind_the_door_only(serve: Any, pki: Any, tokens: Path) -> None:
    """On all addresses a server with TLS and tokens answers its clients, and plain text gets nothing."""
    secret, _ = add_token(tokens, "robot")
    async with serve(host="0.0.0.0", **pki.server(), tokens=tokens) as running:
        assert await _code(running.target, pki, secret) == "OK"
        async with grpc.aio.insecure_channel(running.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/edgephi.v1.ModelService/ListModels", None, None)(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
