"""What a process may use of a machine's memory, and how people write sizes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.errors import ConfigError
from edgephi.profile.machine.memory_limits import (
    BoundKind,
    default_reserve_bytes,
    format_size,
    memory_budget,
    parse_bytes,
)
from edgephi.profile.machine.probe import CpuFacts, DeviceFacts, LimitFacts, MemoryFacts, OsFacts

MIB, GIB = 1 << 20, 1 << 30
CPU = CpuFacts(None, "aarch64", frozenset(), None, ())


def device(memory: MemoryFacts, limits: LimitFacts | None = None) -> DeviceFacts:
    """Return a machine of which only memory matters."""
    return DeviceFacts(None, CPU, memory, limits or LimitFacts(None, None, ()), OsFacts(None, None))


PI5 = device(MemoryFacts(8 * GIB, 6 * GIB, process_bytes=64 * MIB, swap_total_bytes=2 * GIB))


def test_the_smallest_bound_is_the_budget_and_is_named() -> None:
    """Free memory, a group's limit, the address space and the operator each bound the budget in turn."""
    assert memory_budget(PI5).bytes == 6 * GIB - 512 * MIB + 64 * MIB
    assert memory_budget(PI5).reason.startswith(
        "6.00 GiB free on this machine, less 512 MiB left to the system, and 64 MiB that this process has"
    )
    limits = LimitFacts(4 * GIB, None, (), memory_left_bytes=3 * GIB)
    grouped = memory_budget(dataclasses.replace(PI5, limits=limits))
    assert (grouped.bytes, grouped.kind) == (3 * GIB + 64 * MIB, BoundKind.CGROUP)
    assert "limit of 4.00 GiB" in grouped.reason
    limits = dataclasses.replace(limits, address_space_bytes=2 * GIB)
    mapped = memory_budget(dataclasses.replace(PI5, limits=limits))
    assert (mapped.bytes, mapped.kind) == (GIB, BoundKind.ADDRESS_SPACE)
    assert "ulimit -v" in mapped.reason
    declared = memory_budget(dataclasses.replace(PI5, limits=limits), declared_bytes=512 * MIB)
    assert (declared.bytes, declared.kind) == (512 * MIB, BoundKind.DECLARED)
    assert [bound.kind for bound in declared.bounds] == [
        BoundKind.DECLARED,
        BoundKind.ADDRESS_SPACE,
        BoundKind.CGROUP,
        BoundKind.MACHINE,
    ]


@pytest.mark.parametrize(("others", "usable"), [(0, 2 * GIB), (4 * MIB, 2 * GIB), (5 * MIB, 2 * GIB - 5 * MIB)])
def test_a_group_of_its_own_is_the_servers_as_a_whole(others: int, usable: int) -> None:
    """Page tables and the like, up to 4 MiB, take nothing from what a group is limited to; another program does."""
    limits = LimitFacts(2 * GIB, None, (), memory_left_bytes=2 * GIB - 64 * MIB - others)
    assert memory_budget(dataclasses.replace(PI5, limits=limits)).bytes == usable


def test_swap_is_no_memory() -> None:
    """Swap changes no budget and the reason says so."""
    without = dataclasses.replace(PI5, memory=dataclasses.replace(PI5.memory, swap_total_bytes=0))
    assert memory_budget(PI5).bytes == memory_budget(without).bytes
    assert "2.00 GiB of swap is not counted" in memory_budget(PI5).reason
    assert "swap" not in memory_budget(without).reason


def test_a_declared_budget_raises_nothing() -> None:
    """An operator may allow less than there is, not more."""
    assert memory_budget(PI5, declared_bytes=64 * GIB).bytes == memory_budget(PI5).bytes


def test_the_reserve_can_be_set() -> None:
    """What is left to the system is the caller's choice; a group's limit needs no reserve."""
    assert memory_budget(PI5, reserve_bytes=0).bytes == 6 * GIB + 64 * MIB
    assert memory_budget(PI5, reserve_bytes=GIB).bytes == 5 * GIB + 64 * MIB
    grouped = dataclasses.replace(PI5, limits=LimitFacts(GIB, None, (), GIB))
    assert memory_budget(grouped, reserve_bytes=GIB).bytes == GIB
    assert memory_budget(PI5, reserve_bytes=100 * GIB).bytes == 0


def test_nothing_known_is_no_budget() -> None:
    """Where the kernel does not tell and nobody declares, there is no number."""
    nothing = device(MemoryFacts(None, None))
    assert memory_budget(nothing).bytes is None
    assert memory_budget(nothing).kind is None
    assert "declare" in memory_budget(nothing).reason
    assert memory_budget(nothing, declared_bytes=GIB).bytes == GIB


def test_the_default_reserve_grows_with_the_machine_within_bounds() -> None:
    """A sixteenth of RAM, at least 128 MiB and at most 512."""
    assert [default_reserve_bytes(n) for n in (None, GIB, 4 * GIB, 64 * GIB)] == [
        128 * MIB,
        128 * MIB,
        256 * MIB,
        512 * MIB,
    ]


sizes = st.none() | st.integers(0, 1 << 40)


@given(sizes, sizes, sizes, sizes, sizes, st.integers(0, 1 << 34))
def test_more_memory_never_shrinks_a_budget(
    total: int | None, free: int | None, limit: int | None, left: int | None, space: int | None, more: int
) -> None:
    """The budget is within every bound and grows with each of them."""
    limits = LimitFacts(limit, None, (), left, space)
    budget = memory_budget(device(MemoryFacts(total, free), limits)).bytes
    if free is not None:
        assert budget is not None
        larger = memory_budget(device(MemoryFacts(total, free + more), limits)).bytes
        assert budget <= free
        assert larger is not None
        assert larger >= budget
    if limit is not None:
        assert budget is not None
        assert budget <= limit
    if space is not None:
        assert budget is not None
        assert budget <= space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * GIB),
        ("4096MiB", 4 * GIB),
        ("4GB", 4_000_000_000),
        (" 1.5 gb ", 1_500_000_000),
        ("0.5GiB", 512 * MIB),
        ("2g", 2 * GIB),
        ("2Gi", 2 * GIB),
        ("512M", 512 * MIB),
        ("4194304 kB", 4_194_304_000),
        ("4194304KiB", 4 * GIB),
        ("4294967296", 4 * GIB),
        ("4294967296B", 4 * GIB),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    """Units of 1024 and of 1000 are told apart; a letter alone is 1024, as in Docker and systemd."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-4GiB", "4 gallons", "4GiB extra", "1e9", "0x10", "nan", "4,5GiB", "٤GiB", "4.GiB", "9" * 30]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """The message holds the flag, the value and what is expected."""
    with pytest.raises(ConfigError, match="--memory is") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)
    assert "4GiB" in str(caught.value)


@pytest.mark.parametrize("text", ["0", "4", "1000kB", "2000TiB", "0GiB"])
def test_a_size_out_of_bounds_is_refused(text: str) -> None:
    """A budget no machine has is refused with its bounds, and a forgotten unit is guessed at."""
    with pytest.raises(ConfigError, match="between 1MiB and 1PiB") as caught:
        parse_bytes(text, name="EDGEPHI_MEMORY")
    assert str(caught.value).startswith("EDGEPHI_MEMORY is ")
    assert ("did you mean 4GiB?" in str(caught.value)) == (text == "4")


def test_sizes_are_printed_in_gib_or_mib() -> None:
    """Sizes in reasons have two decimals of a GiB, or whole MiB below one."""
    assert [format_size(n) for n in (0, 300 * MIB, GIB, 5 * GIB // 2)] == ["0 MiB", "300 MiB", "1.00 GiB", "2.50 GiB"]
