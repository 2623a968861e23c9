"""
What a robot imports: a typed client of an edgephi server, blocking and asyncio.

    from edgephi.client import Client

    with Client("127.0.0.1:50051") as client:
        for text in client.chat("Is the door open?"):
            print(text, end="", flush=True)

Needs the contract and gRPC only: no model, no NumPy, no TVM.
"""

from edgephi.client.aio import AsyncChatStream, AsyncClient
from edgephi.client.errors import (
    AccessRefused,
    CallCancelled,
    ClientError,
    DeadlinePassed,
    ModelUnknown,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnavailable,
    StreamCut,
)
from edgephi.client.events import Delta, FinalInfo, PrefillProgress, Timings, TokenLogprob, Usage
from edgephi.client.options import TlsOptions
from edgephi.client.requests import ChatMessage, Sampling
from edgephi.client.sync import ChatStream, Client

__all__ = [
    "AccessRefused",
    "AsyncChatStream",
    "AsyncClient",
    "CallCancelled",
    "ChatMessage",
    "ChatStream",
    "Client",
    "ClientError",
    "DeadlinePassed",
    "Delta",
    "FinalInfo",
    "ModelUnknown",
    "PrefillProgress",
    "RequestRefused",
    "Sampling",
    "ServerBusy",
    "ServerFailed",
    "ServerUnavailable",
    "StreamCut",
    "Timings",
    "TlsOptions",
    "TokenLogprob",
    "Usage",
]
