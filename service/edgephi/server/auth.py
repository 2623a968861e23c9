"""
Who calls, and whether they may: the one door in front of every method.

Owns the table of methods and scopes. Tokens are checked by ``edgephi.server.tokens``, certificates by TLS before any
call; here their holders get a name and a scope. A token is never logged, counted or sent back.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.x509.oid import NameOID

from edgephi.errors import PermissionDenied, Unauthenticated
from edgephi.server.calls import Context, Method, ScopeInterceptor, current_call
from edgephi.server.tokens import Scope, TokenStore

AUTHORIZATION_KEY = "authorization"
ADMIN_UNIT = "edgephi-admin"
"""Organizational unit of a client certificate whose holder may do everything (`edgephi cert issue NAME --admin`)."""

MAX_CLIENT_ID_LEN = 64
_SCHEME = "bearer"
_CERTIFICATE_KEY = "x509_pem_cert"

METHOD_SCOPES: Mapping[str, Scope | None] = MappingProxyType(
    {
        "edgephi.v1.GenerationService/Chat": Scope.INFER,
        "edgephi.v1.GenerationService/Complete": Scope.INFER,
        "edgephi.v1.GenerationService/CountTokens": Scope.INFER,
        "edgephi.v1.ModelService/ListModels": Scope.INFER,
        "edgephi.v1.ModelService/GetModel": Scope.INFER,
        "edgephi.v1.DeviceService/GetDevice": Scope.INFER,
        "edgephi.v1.DeviceService/GetPlan": Scope.INFER,
        "edgephi.v1.DeviceService/WatchState": Scope.INFER,
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.INFER,
        # Open: the probes of an orchestrator can send no token, and are told nothing but whether to send work here.
        "grpc.health.v1.Health/Check": None,
        "grpc.health.v1.Health/List": None,
        "grpc.health.v1.Health/Watch": None,
    }
)
"""What a caller needs for each method; None for methods that are open. What is not named here needs ADMIN."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a name for logs and fair shares, and what they may do."""

    client_id: str
    scope: Scope


class AuthInterceptor(ScopeInterceptor):
    """
    The innermost interceptor: what it raises is mapped and logged like any other refusal. Lives as long as its server.

    A token that is sent decides alone, so that a bad one is refused even beside a good certificate. Without tokens and
    without certificates everyone may do everything, and the address they call from is their name.

    Args:
        tokens: Those that are accepted, or None for none.
        has_client_certificates: Whether TLS lets only clients in that showed a certificate.
        write_timeout_s: As in :class:`ScopeInterceptor`.
    """

    def __init__(
        self, tokens: TokenStore | None, *, has_client_certificates: bool, write_timeout_s: float | None = None
    ) -> None:
        super().__init__(is_innermost=True, write_timeout_s=write_timeout_s)
        self._tokens = tokens
        self._has_client_certificates = has_client_certificates

    @contextlib.asynccontextmanager
    async def scope(self, method: Method, context: Context) -> AsyncIterator[None]:
        """
        Refuse a call, or write down who makes it.

        Raises:
            Unauthenticated: If it has neither a token that is known nor a certificate.
            PermissionDenied: If its scope is not enough for the method.
        """
        name = f"{method.service}/{method.name}"
        needed = METHOD_SCOPES.get(name, Scope.ADMIN)
        if needed is not None:
            call = current_call()
            caller = self._caller(context)
            if caller is None:
                call.client_id = _address(context.peer())
            else:
                call.client_id = caller.client_id
                if caller.scope is not Scope.ADMIN and caller.scope is not needed:
                    raise PermissionDenied(
                        f"{caller.client_id!r} has the scope {caller.scope}, and {name} needs {needed}; ask whoever "
                        "runs this server"
                    )
        yield

    def _caller(self, context: Context) -> Caller | None:
        """Return who calls, or None where nobody is asked who they are."""
        if self._tokens is not None:
            secret = _bearer(context)
            if secret is not None:
                token = self._tokens.find(secret)
                return Caller(token.name, token.scope)
        if self._has_client_certificates:
            certificates: Sequence[bytes] = context.auth_context().get(_CERTIFICATE_KEY) or ()
            if len(certificates) == 1:
                return _holder(certificates[0])
            raise Unauthenticated("the connection has no client certificate")
        if self._tokens is None:
            return None
        raise Unauthenticated(
            "this server asks for a token; send it as the metadata 'authorization: Bearer TOKEN' (edgephi: "
            "EDGEPHI_TOKEN or --token-file, and Client(token=...))"
        )


def _bearer(context: Context) -> str | None:
    """Return the token of a call, or None where none was sent."""
    sent = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION_KEY]
    if not sent:
        return None
    scheme, _, secret = str(sent[0]).partition(" ")
    if len(sent) > 1 or scheme.lower() != _SCHEME or not secret:
        raise Unauthenticated("the metadata 'authorization' must be sent once, as 'Bearer TOKEN'")
    return secret.strip()


@functools.lru_cache(maxsize=256)
def _holder(pem: bytes) -> Caller:
    """Return whom a certificate names; TLS has checked who signed it."""
    certificate = x509.load_pem_x509_certificate(pem)
    subject = certificate.subject
    names = [str(part.value) for part in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    with contextlib.suppress(x509.ExtensionNotFound):
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += others.get_values_for_type(x509.DNSName) + others.get_values_for_type(x509.UniformResourceIdentifier)
    # The serial number is unique where nothing names the holder.
    name = next((name for name in names if name.strip()), f"serial-{certificate.serial_number:x}")
    units = [part.value for part in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    printable = "".join(character if character.isprintable() else "?" for character in name[:MAX_CLIENT_ID_LEN])
    return Caller(printable, Scope.ADMIN if ADMIN_UNIT in units else Scope.INFER)


def _address(peer: str) -> str:
    """Return the host of ``ipv4:HOST:PORT``; connections of one host are one client."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind
