"""
How an engine is, as those who watch it see it.

Owns these types only. An engine in this process is either running or failed; one in a process of its own may also be
starting again (edgephi.isolation).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class EngineState(enum.Enum):
    """Whether an engine can take requests."""

    STARTING = "starting"  # its process is loading the model, for the first time or again
    RUNNING = "running"
    FAILED = "failed"  # it ended and will not be started again


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """
    An engine at one moment.

    Attributes:
        state: Whether it can take requests.
        starts_total: Times it was started, the first included; a change means that all that ran before has ended.
        deaths_total: Times it ended without being asked to.
        quarantined_total: Requests refused because they had ended it more than once.
        last_death: Why it ended last, for the log and not for clients; None if it never did.
        process_id: Its process; None where it runs in this one, or in none at present.
    """

    state: EngineState
    starts_total: int = 1
    deaths_total: int = 0
    quarantined_total: int = 0
    last_death: str | None = None
    process_id: int | None = None
