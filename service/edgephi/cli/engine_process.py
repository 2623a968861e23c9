"""
The program of an engine process; ``edgephi serve`` starts it, people do not.

Owns nothing but the composition: what the first message describes is loaded and served over the inherited descriptor.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec

from edgephi.cli.engines import EngineSetup, load_engine
from edgephi.isolation.channel import Channel
from edgephi.isolation.child import OpenedEngine, serve


def open_engine(options: bytes, progress: Callable[[str, int, int], None]) -> OpenedEngine:
    """Load what the front asks for."""
    loaded = load_engine(msgspec.msgpack.decode(options, type=EngineSetup), progress)
    # Its owner is not closed: the process ends as a whole.
    return OpenedEngine(loaded.engine, msgspec.msgpack.encode(loaded.description))


def main() -> NoReturn:
    """Serve the front at the other end of the descriptor that the only argument names."""
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)  # a compiler started from here must not keep the connection open
    serve(Channel(end), open_engine)


if __name__ == "__main__":
    main()
