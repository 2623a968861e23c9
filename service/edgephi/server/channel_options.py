"""
What gRPC itself refuses, and how much it does for one connection.

Owns the names of its options, of which it does not check one: an unknown name is ignored without a word, so
tests/hostile holds each of them by what it does.
"""

from __future__ import annotations

from edgephi.server.settings import ServerSettings

SMALL_MEMORY_BYTES = 2 << 30
SMALL_MAX_CONNECTIONS = 16
MAX_CONNECTIONS = 64

MAX_METADATA_BYTES = 16 << 10
"""As HTTP/2 counts: names, values and 32 for each."""

_METADATA_SOFT_BYTES = 8 << 10
_ONLY_IDENTITY = 1


def max_connections(settings: ServerSettings, memory_bytes: int | None) -> int:
    """Return how many connections may be open: as set, or by the machine's memory, None where that is not known."""
    if settings.max_connections is not None:
        return settings.max_connections
    is_small = memory_bytes is not None and memory_bytes < SMALL_MEMORY_BYTES
    return SMALL_MAX_CONNECTIONS if is_small else MAX_CONNECTIONS


def channel_options(settings: ServerSettings, *, memory_bytes: int | None) -> tuple[tuple[str, int], ...]:
    """
    Return gRPC's options for a server.

    Its defaults would let two servers share a port without a word, cut clients that ping through a long prefill, keep
    the slot of a client that vanished, unpack what was compressed a thousand times, and bound neither connections nor
    calls.

    Args:
        settings: What the operator chose.
        memory_bytes: Memory of the machine, or None where it is not known.
    """
    return (
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams),
        # A call counts until this process has let go of it, after its client was told that it ended and may have begun
        # the next. Without room for those, more calls on a connection than max_streams are refused at random.
        ("grpc.http2.max_deallocating_streams", 2 * settings.max_streams),
        ("grpc.max_allowed_incoming_connections", max_connections(settings, memory_bytes)),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_timeout_s)),
        # Limits that the settings announce hold from when the client has acknowledged them.
        ("grpc.http2.settings_timeout", _ms(settings.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.connection_idle_s)),
        ("grpc.max_connection_age_ms", _ms(settings.connection_age_s)),
        # An answer that began on an old connection is finished there.
        ("grpc.max_connection_age_grace_ms", _ms(settings.max_duration_s)),
        # Between the two lengths calls are refused at random, more often towards the second. Until the client has
        # acknowledged them MetadataInterceptor holds the limit.
        ("grpc.max_metadata_size", _METADATA_SOFT_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.compression_enabled_algorithms_bitset", _ONLY_IDENTITY),
        ("grpc.http2.max_requests_per_read", 4),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_s)),
        # The one above waits for the other machine, this one for the program on it, which may read and never answer.
        ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
