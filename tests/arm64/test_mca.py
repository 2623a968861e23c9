"""The loop that `make mca` gives to llvm-mca."""

from __future__ import annotations

import re

import pytest
from tests.arm64.mca import inner_loop, kernel_loop

from edgephi.compiler.kernels.activations import GROUP
from edgephi.compiler.targets import COMPILE_TARGETS, Dot

ASSEMBLY = """
outer:
.LBB0_1: // of blocks
	add	x1, x1, #1
.LBB0_2:
	ldr	q1, [x25]
	sdot	v22.4s, v28.16b, v27.16b
	str	q1, [sp, #32]
	smull	v23.8h, v28.8b, v27.8b // eight
	smlal2	v23.8h, v28.16b, v27.16b
	b.ne	.LBB0_2
.LBB0_3:
	mla	v1.4s, v2.4s, v3.4s
	cbnz	x3, .LBB0_3
	tbz	w2, #1, .LBB0_4
	cbnz	x2, .LBB0_1
.LBB0_4:
	ret
"""


def test_the_inner_loop_is_the_innermost_with_most_products() -> None:
    """Of nested loops, forward jumps and a second loop the busiest innermost one is taken, with its spills."""
    loop = inner_loop(ASSEMBLY)
    assert [line.split()[0] for line in loop.lines] == ["ldr", "sdot", "str", "smull", "smlal2", "b.ne"]
    assert (loop.num_products, loop.num_spills) == (32, 1)


def test_of_loops_with_as_many_products_the_shortest_is_taken() -> None:
    """Where a tile of several tokens and one of one token are as large, the one that unpacks less is meant."""
    body = "\tsdot\tv1.4s, v2.16b, v3.16b\n\tsmull\tv1.8h, v2.8b, v3.8b\n\tsmlal2\tv1.8h, v2.16b, v3.16b\n"
    long = f".LBB0_1:\n{body}\tushr\tv1.16b, v2.16b, #4\n\tb.ne\t.LBB0_1\n"
    assert len(inner_loop(f"{long}.LBB0_2:\n{body}\tb.ne\t.LBB0_2\n{long.replace('0_1', '0_3')}").lines) == 4


def test_code_without_whole_groups_is_refused() -> None:
    """Code without a loop and a loop that cannot be the kernel's are errors and no figures."""
    with pytest.raises(ValueError, match="no loop"):
        inner_loop("ret")
    with pytest.raises(ValueError, match="has 24 integer products"):
        inner_loop(ASSEMBLY.replace("smlal2", "fmla"))


@pytest.mark.parametrize("one_token", [True, False])
def test_the_kernels_of_every_level_have_such_a_loop_almost_without_spills(one_token: bool, level: str) -> None:
    """A turn of each level's kernel takes some groups of 32 weights of whole vectors of rows, sums in registers."""
    loop = kernel_loop(level, one_token=one_token)
    assert loop.num_products % (4 * GROUP) == 0
    # Where sdot multiplies several tokens, the 16 sums, their starts and the codes are a few registers too many. A
    # smaller tile has none and is slower.
    is_sdot_tile = COMPILE_TARGETS[level].kernel.dot is Dot.SDOT and not one_token
    assert loop.num_spills <= (8 if is_sdot_tile else 0)


def test_a_loop_with_another_instruction_can_be_passed_over() -> None:
    """The form for one token is the busiest loop without the instruction of the other form."""
    of_pairs = ".LBB1_1:\n" + 2 * "\tsmmla\tv1.4s, v2.16b, v3.16b\n" + "\tb.ne\t.LBB1_1\n"
    assert inner_loop(ASSEMBLY + of_pairs).num_products == 64
    assert inner_loop(ASSEMBLY + of_pairs, without="smmla").num_products == 32


def test_codes_are_shifted_or_masked_and_not_both(level: str) -> None:
    """A register of packed codes is shifted once, by bytes, for half of its codes and masked once for the others."""
    loop = kernel_loop(level, one_token=True)
    num_registers = loop.num_products // 32
    shift = "shl" if COMPILE_TARGETS[level].kernel.dot is Dot.SMMLA else "ushr"
    assert sum(bool(re.match(rf"{shift}\s+v\d+\.16b.*#4$", line)) for line in loop.lines) == num_registers
    masks = sum(bool(re.match(r"and\s+v\d+\.16b", line)) for line in loop.lines)
    assert masks == num_registers + (shift == "shl")  # one sets off where sums of two lanes start
