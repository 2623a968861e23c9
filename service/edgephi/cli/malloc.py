"""
How the C library's allocator treats memory that is freed: for the front, whose load comes in bursts, it is given back.

Owns three options of glibc. Elsewhere, as on Alpine, nothing is changed.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD_BYTES = 128 << 10  # where glibc begins, before it raises both by itself


def give_back_freed_memory() -> bool:
    """
    Let the allocator have one arena and keep nothing beyond 128 KiB; call it before there are threads.

    Not for an engine, which frees and takes large arrays in every step.

    Returns:
        Whether the C library took it.

    Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, _THRESHOLD_BYTES), (_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in options)
