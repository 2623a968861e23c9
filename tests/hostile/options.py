"""A server's options of gRPC, with some of them changed or taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgephi.server.channel_options import channel_options
from edgephi.server.settings import ServerSettings


def with_changes(changes: Mapping[str, int | None]) -> Callable[..., list[tuple[str, int]]]:
    """Return what stands in for ``app.channel_options``: other values for some; None leaves gRPC's default."""

    def options(settings: ServerSettings, *, memory_bytes: int | None) -> list[tuple[str, int]]:
        ours = {**dict(channel_options(settings, memory_bytes=memory_bytes)), **changes}
        return [(name, value) for name, value in ours.items() if value is not None]

    return options
