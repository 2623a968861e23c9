"""
What to do about a connection that TLS refused.

Owns the reading of gRPC's text: it is all that a client gets, for such a connection has no status of its own.
"""

from __future__ import annotations

import time

# What gRPC's text begins with, by the way it chooses among a name's addresses.
_NOT_CONNECTED = ("failed to connect to all addresses", "connections to all backends failing")
_CLOCK = "this machine's clock says {now}"
_HINTS = (
    (
        "certificate is not yet valid",
        f"the server's certificate, or its authority's, is not valid yet and {_CLOCK}; set the clock first",
    ),
    (
        "certificate has expired",
        f"the server's certificate, or its authority's, has expired and {_CLOCK}; renew it on the server "
        "(`edgephi cert issue --server`), or set the clock",
    ),
    (
        "unable to get local issuer certificate",
        "none of the trusted authorities signed the server's certificate; take the ca.pem that `edgephi cert "
        "init` made for it",
    ),
    ("self signed certificate", "the server's certificate is its own authority and not a trusted one; take it as ca"),
    (
        "Hostname Verification Check failed",
        "the server's certificate is not for the name or address that was asked; use one that it is for (`edgephi cert "
        "show`), or add this one on the server (`edgephi cert issue --server --name NAME`)",
    ),
    ("unsupported certificate purpose", "the server shows a certificate that is not for servers; give it server.pem"),
    ("WRONG_VERSION_NUMBER", "the server speaks no TLS there; connect without it if the network is trusted"),
    (
        "Socket closed",
        "the server closed the connection before any call: mostly it speaks TLS and was asked without, or it wants a "
        "client certificate that it accepts and that has not expired (its log says which)",
    ),
)


def handshake_hint(details: str) -> str | None:
    """Return what to do about gRPC's text for a connection that was not made, or None where that is not known."""
    if not details.startswith(_NOT_CONNECTED):
        return None
    for text, hint in _HINTS:
        if text in details:
            return hint.format(now=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    return None
