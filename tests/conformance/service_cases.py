"""Cases of what stands around the service: health, reflection, and who may call over TLS."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tests.conformance.rig import COUNT, GET_PLAN, HEALTH_CHECK, HEALTH_WATCH, REFLECTION, Rig, reason_of
from tests.conformance.stacks import decoded, descriptor_set
from tests.server.conftest import Pki

from edgephi.server.app import SERVICES
from edgephi.server.tokens import add_token

TOKENS = "tokens.json"


def health(rig: Rig) -> None:
    """The server and each service are SERVING, a name that is not known is NOT_FOUND, and a watcher is told at once."""
    for name in ("", *SERVICES, "liveness"):
        seen = rig.call(HEALTH_CHECK, {"service": name})
        assert (seen.code, seen.messages) == ("OK", [{"status": "SERVING"}])
    assert rig.call(HEALTH_CHECK, {"service": "no.such.Service"}).code == "NOT_FOUND"
    watch = rig.call(HEALTH_WATCH, {"service": SERVICES[0]}, cancel_after=1)
    assert (watch.code, watch.messages) == ("CANCELLED", [{"status": "SERVING"}])


def reflection(rig: Rig) -> None:
    """Reflection names every service, and a client that knows nothing else can make a call from what it tells."""
    requests = [{"list_services": "*"}, {"file_containing_symbol": SERVICES[0]}]
    (seen,) = rig.calls({"method": REFLECTION, "requests": requests})
    assert seen.code == "OK"
    listed, told = seen.messages
    names = {service["name"] for service in listed["list_services_response"]["service"]}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    files = [decoded(file) for file in told["file_descriptor_response"]["file_descriptor_proto"]]
    known = base64.b64encode(descriptor_set(files)).decode()
    answered = rig.call(COUNT, {"prompt": "go"}, descriptors=known)
    assert answered.code == "OK"
    assert answered.messages == rig.call(COUNT, {"prompt": "go"}).messages


def tls_arguments(pki: Pki) -> Mapping[str, Any]:
    """Return the settings of a server with TLS that asks for tokens."""
    add_token(pki.folder / TOKENS, "nobody")
    return {**pki.server(), "tokens": pki.folder / TOKENS}


def per_rpc_credentials(rig: Rig) -> None:
    """Over TLS a call with a token is answered; without one, with a wrong one, or for another authority it is not."""
    secret, _ = add_token(rig.pki.folder / TOKENS, "robot")
    tls = {"ca": str(rig.pki.ca)}
    good = rig.call(GET_PLAN, tls=tls, metadata=[["authorization", f"Bearer {secret}"]])
    assert good.code == "OK"
    for metadata in ([], [["authorization", f"Bearer {secret[:-1]}"]], [["authorization", "Basic Og=="]]):
        seen = rig.call(GET_PLAN, tls=tls, metadata=metadata)
        assert (seen.code, reason_of(seen)) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert secret[:-1] not in seen.details
    assert rig.call(HEALTH_CHECK, tls=tls).code == "OK"
    stranger = {"ca": str(rig.pki.write("other.pem", rig.pki.other.certificate_pem))}
    assert rig.call(GET_PLAN, tls=stranger, timeout_s=5).code == "UNAVAILABLE"
    assert rig.call(GET_PLAN, timeout_s=5).code == "UNAVAILABLE", "without TLS"
