"""
How much memory this process may use now, and what sets that bound.

Owns the rule: the smallest of what the machine can give, what the control groups leave, what the address space has
room for and what the operator declared. Swap and zram are not memory: weights are read for every token.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from decimal import Decimal

from edgephi.errors import ConfigError
from edgephi.profile.machine.kernelfile import MAX_MEMORY_BYTES
from edgephi.profile.machine.probe import DeviceFacts

MIB = 1 << 20
GIB = 1 << 30
# Other programs grow while a model is served. A sixteenth of RAM is assumed, within bounds that suit 1 to 16 GB boards.
RESERVE_SHARE = 16
MIN_RESERVE_BYTES = 128 * MIB
MAX_RESERVE_BYTES = 512 * MIB
# A group is also charged for page tables and stacks, and in batches of 64 pages a CPU: 0.9 MiB more than a starting
# server has, on two cores. A plan's reserve has room for that. Were it counted here as well, a container limited to
# just what a plan needs would be refused; so a group of which others hold no more than this is the server's own.
OWN_GROUP_BYTES = 4 * MIB
# Less than this is a number whose unit was forgotten.
MIN_DECLARED_BYTES = MIB
# "G" alone counts 1024s, as in Docker, systemd and Kubernetes' "Gi"; "GB" counts 1000s, as on a box.
_POWERS = "kmgt"


class BoundKind(enum.Enum):
    """What may bound the memory of a process."""

    MACHINE = "machine"
    CGROUP = "cgroup"
    ADDRESS_SPACE = "address space"
    DECLARED = "declared"


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """
    One bound.

    Attributes:
        kind: What sets it.
        bytes: All that this process may use, with what it uses already.
        reason: The same for people, with its numbers.
    """

    kind: BoundKind
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """
    What a process may use now.

    Attributes:
        bytes: The smallest bound, from 0; None where nothing is known.
        reason: Which bound it is, for people.
        bounds: All that are known, smallest first.
    """

    bytes: int | None
    reason: str
    bounds: tuple[MemoryBound, ...] = ()

    @property
    def kind(self) -> BoundKind | None:
        """What sets the budget, or None where nothing is known."""
        return self.bounds[0].kind if self.bounds else None


def memory_budget(
    facts: DeviceFacts, *, reserve_bytes: int | None = None, declared_bytes: int | None = None
) -> MemoryBudget:
    """
    Find what this process may use, including what it uses when the facts were read.

    Args:
        facts: The machine, as it was probed.
        reserve_bytes: Left to the rest of the system; by default ``default_reserve_bytes``. A control group needs none.
        declared_bytes: What the operator allows.
    """
    own = facts.memory.process_bytes or 0
    bounds: list[MemoryBound] = []
    available = facts.memory.available_bytes
    if available is not None:
        reserve = default_reserve_bytes(facts.memory.total_bytes) if reserve_bytes is None else reserve_bytes
        reason = f"{format_size(available)} free on this machine, less {format_size(reserve)} left to the system"
        if own:
            reason += f", and {format_size(own)} that this process has"
        if facts.memory.swap_total_bytes:
            reason += f"; {format_size(facts.memory.swap_total_bytes)} of swap is not counted"
        bounds.append(MemoryBound(BoundKind.MACHINE, max(available + own - reserve, 0), reason))
    limit, left = facts.limits.memory_bytes, facts.limits.memory_left_bytes
    if limit is not None:
        usable = limit if left is None or limit - left - own <= OWN_GROUP_BYTES else left + own
        reason = f"a limit of {format_size(limit)} on the container or service, of which {format_size(usable)} is left"
        bounds.append(MemoryBound(BoundKind.CGROUP, usable, reason))
    space = facts.limits.address_space_bytes
    if space is not None:
        allowance = mapping_allowance_bytes(sum(len(cluster.cpus) for cluster in facts.cpu.clusters))
        reason = (
            f"an address space limit (ulimit -v) of {format_size(space)}, less {format_size(allowance)} for mappings "
            "that hold no memory"
        )
        bounds.append(MemoryBound(BoundKind.ADDRESS_SPACE, max(space - allowance, 0), reason))
    if declared_bytes is not None:
        bounds.append(MemoryBound(BoundKind.DECLARED, declared_bytes, f"{format_size(declared_bytes)} as declared"))
    bounds.sort(key=lambda bound: bound.bytes)
    if not bounds:
        return MemoryBudget(None, "nothing tells how much memory is free; declare a budget")
    return MemoryBudget(bounds[0].bytes, bounds[0].reason, tuple(bounds))


def default_reserve_bytes(total_bytes: int | None) -> int:
    """Return what is left to the rest of a machine with so much RAM; the least where that is not known."""
    share = (total_bytes or 0) // RESERVE_SHARE
    return min(max(share, MIN_RESERVE_BYTES), MAX_RESERVE_BYTES)


def mapping_allowance_bytes(num_cpus: int) -> int:
    """
    Return the address space a server maps without using it as memory, for so many cores.

    Shared libraries, stacks and the 64 MiB that glibc sets aside for each allocating thread; the number of threads
    grows with the cores. Serving on two cores peaked 0.98 GiB above what was resident (VmPeak and VmRSS of
    ``edgephi serve`` with the embedded model and four clients).
    """
    return GIB + num_cpus * 160 * MIB


def parse_bytes(text: str, *, name: str = "--memory") -> int:
    """
    Return the bytes that a person's text such as ``4GiB``, ``4096 MiB``, ``1.5GB`` or ``4294967296`` means.

    ``KiB``, ``MiB``, ``GiB``, ``TiB`` and the single letters count 1024s, ``kB``, ``MB``, ``GB``, ``TB`` count 1000s.

    Args:
        text: Number and unit; upper or lower case does not matter.
        name: The flag or setting, for the message.

    Raises:
        ConfigError: It is no size, or not one between 1 MiB and 1 PiB.
    """
    match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?:([kmgt])(i?)(b?)|b)?", text.strip().lower(), re.ASCII)
    if match is None:
        raise ConfigError(f"{name} is {text!r}; expected a size such as 4GiB, 4096MiB or 4GB")
    is_decimal = match[4] and not match[3]
    number = int(Decimal(match[1]) * (1000 if is_decimal else 1024) ** (_POWERS.index(match[2]) + 1 if match[2] else 0))
    if not MIN_DECLARED_BYTES <= number < MAX_MEMORY_BYTES:
        hint = f"; did you mean {match[1]}GiB?" if not match[2] and number < MIN_DECLARED_BYTES else ""
        raise ConfigError(f"{name} is {text!r}, {number} bytes; expected between 1MiB and 1PiB{hint}")
    return number


def format_size(count: int) -> str:
    """Return a size in GiB, or in MiB below one."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
