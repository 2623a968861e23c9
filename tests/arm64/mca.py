"""
How fast the matrix kernel could be on ARM cores, from its machine code: ``make mca``.

Emulation says nothing about speed, so the inner loop of the kernel is given to llvm-mca, which simulates a core's
pipelines with every load a hit in the first cache. The result is an upper bound. For one token: a core that needs fewer
weight bytes a cycle than this to keep its memory busy is bound by memory, as it should be, and one that needs more by
the kernel. For several tokens: the products a cycle, which bound the speed of prefill.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

import tvm

from edgephi.compiler.kernels.activations import GROUP, Activations
from edgephi.compiler.kernels.matmul_q4 import matmul_q4
from edgephi.compiler.targets import COMPILE_TARGETS, Dot

_ITERATIONS = 200
_HIDDEN = 3072  # Phi-3-mini's, so the output projection: a square matrix
_BYTES_PER_WEIGHT = 0.5 + 2 / GROUP  # a 4-bit code and its share of a float16 scale


@dataclass(frozen=True, slots=True)
class Core:
    """
    A core of a board and the memory behind it.

    Attributes:
        name: Core and board.
        level: Level compiled for.
        model: LLVM's CPU name whose scheduling model is nearest. LLVM 19 has none of the A76, X1 and X2 themselves: it
            takes the A57's for the first two and Neoverse N2's for the third. Neoverse N1, V1 and V2 are the A76, X1
            and X3 made for servers.
        ghz: Clock, as the maker publishes it.
        memory_gbps: What the core's share of the memory is, or what one core was measured to read.
        memory_note: Where that figure comes from.
    """

    name: str
    level: str
    model: str
    ghz: float
    memory_gbps: float
    memory_note: str


_PI5 = 17.1 / 4, "a quarter of the theoretical 17.1"
_RK3588 = 34.1 / 4, "a quarter of the theoretical 34.1"
_PHONE = 51.2 / 2, "half of 51.2, LPDDR5-6400 of 64 bits"

CORES = (
    Core("Cortex-A72, Pi 4", "armv8.0", "cortex-a72", 1.5, 5.5 / 4, "a quarter of STREAM's 5.5"),
    Core("Cortex-A76, Pi 5", "armv8.2-dotprod", "neoverse-n1", 2.4, *_PI5),
    Core("Cortex-A76, Pi 5, alone", "armv8.2-dotprod", "neoverse-n1", 2.4, 9.4, "one core's measured read"),
    Core("Cortex-A76, RK3588", "armv8.2-dotprod", "neoverse-n1", 2.4, *_RK3588),
    Core("the same as LLVM has it", "armv8.2-dotprod", "cortex-a76", 2.4, *_RK3588),
    Core("Cortex-A55, RK3588", "armv8.2-dotprod", "cortex-a55", 1.8, 34.1 / 8, "an eighth of the theoretical 34.1"),
    Core("Cortex-X1, phone", "armv8.2-dotprod", "neoverse-v1", 2.84, *_PHONE),
    Core("the same as LLVM has it", "armv8.2-dotprod", "cortex-x1", 2.84, *_PHONE),
    Core("Cortex-X2, phone", "armv8.6-i8mm", "neoverse-v2", 3.0, *_PHONE),
    Core("the same as LLVM has it", "armv8.6-i8mm", "cortex-x2", 3.0, *_PHONE),
)


@dataclass(frozen=True, slots=True)
class Loop:
    """
    The inner loop of a kernel.

    Attributes:
        lines: Its instructions in order, assembly without labels.
        num_products: Products of a weight and an activation in a turn; in the one-token form that many weights.
        num_spills: Loads and stores of vector registers to and from the stack.
    """

    lines: tuple[str, ...]
    num_products: int
    num_spills: int


def kernel_loop(level: str, *, one_token: bool) -> Loop:
    """Return the inner loop of a level's kernel for as many tokens as its tile has, or for one."""
    if one_token and COMPILE_TARGETS[level].kernel.dot is Dot.SMMLA:
        return inner_loop(kernel_assembly(level, one_token=False), without="smmla")  # it has a form for one token
    return inner_loop(kernel_assembly(level, one_token=one_token))


def inner_loop(assembly: str, without: str | None = None) -> Loop:
    """
    Find the innermost loop that multiplies most integers; of equals the shortest, which unpacks for most tokens.

    Args:
        assembly: Machine code.
        without: An instruction that is not in the loop.

    Raises:
        ValueError: If there is none, or a turn does not take whole groups of weights.
    """
    lines = [line.split("//")[0].strip() for line in assembly.splitlines()]
    at = {line.removesuffix(":"): number for number, line in enumerate(lines) if line.endswith(":")}
    spans: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        target = re.search(r"^(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if target is not None and at.get(target[1], number) < number:
            spans.append((at[target[1]], number))
    innermost = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    bodies = [[line for line in lines[first : last + 1] if line and not re.match(r"[.#]|.*:$", line)]
              for first, last in innermost]  # fmt: skip
    bodies = [body for body in bodies if without is None or not any(line.split()[0] == without for line in body)]
    if not bodies:
        raise ValueError("the kernel has no loop")
    body = max(bodies, key=lambda lines: (_products(lines), -len(lines)))
    products = _products(body)
    if products == 0 or products % GROUP:
        raise ValueError(f"a turn of the inner loop has {products} integer products; expected a multiple of {GROUP}")
    spills = sum(bool(re.match(r"(ld|st)[rp]\s+q.*\[(sp|x29)\b", line)) for line in body)
    return Loop(tuple(body), products, spills)


def _products(body: list[str]) -> int:
    """Return how many products the instructions add up."""
    found = 0
    for line in body:
        if re.match(r"smmla\s+v\d+\.4s", line):
            found += 32
        elif re.match(r"(s|u|us|su)dot\s+v\d+\.4s", line):
            found += 16
        elif re.match(r"(mla|mul|[su]ml[as]l2?|[su]mull2?)\s+v\d+\.4s", line):
            found += 4
        elif re.match(r"(mla|mul|[su]ml[as]l2?|[su]mull2?)\s+v\d+\.8h", line):
            found += 8
    return found


def kernel_assembly(level: str, *, one_token: bool) -> str:
    """Return the machine code of the kernel for a level, all of it or its one-token form alone."""
    target = COMPILE_TARGETS[level]
    shape = dataclasses.replace(target.kernel, tile_tokens=1) if one_token else target.kernel
    kernel = matmul_q4(_HIDDEN, _HIDDEN, shape, "float16", Activations.INT8, residual=False)
    module = tvm.IRModule({"matmul": kernel.with_attr("global_symbol", "matmul")})
    text: str = tvm.compile(module, target=target.tvm_target()).mod.inspect_source("asm")
    return text


def cycles_per_turn(loop: Loop, model: str) -> float:
    """Return how many cycles llvm-mca thinks that a turn of the loop takes."""
    command = [find_mca(), "-mtriple=aarch64-linux-gnu", f"-mcpu={model}", "-mattr=+dotprod,+fullfp16,+i8mm",
               f"-iterations={_ITERATIONS}", "-resource-pressure=0", "-instruction-info=0"]  # fmt: skip
    done = subprocess.run(command, input="\n".join(loop.lines), capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total is not None, done.stdout
    return int(total[1]) / _ITERATIONS


def find_mca() -> str:
    """
    Return the newest llvm-mca there is.

    Raises:
        FileNotFoundError: If there is none of LLVM 19 or later; older ones lack the models.
    """
    for version in range(40, 18, -1):
        found = shutil.which(f"llvm-mca-{version}")
        if found is not None:
            return found
    raise FileNotFoundError("no llvm-mca of LLVM 19 or later found; on Debian: apt install llvm-19")


def main() -> None:
    """Print a row for each core, in Markdown: one token, then as many as a tile has."""
    levels = list(dict.fromkeys(core.level for core in CORES))
    ones, tiles = ({level: kernel_loop(level, one_token=one_token) for level in levels} for one_token in (True, False))
    _print_head("level", "tokens", "products a turn", "instructions a turn", "spills a turn")
    for level in levels:
        for tokens, loop in ((1, ones[level]), (COMPILE_TARGETS[level].kernel.tile_tokens, tiles[level])):
            print(f"| {level} | {tokens} | {loop.num_products} | {len(loop.lines)} | {loop.num_spills} |")
    print()
    _print_head(
        "core", "model", "GHz", "one token: bytes a cycle", "kernel GB/s", "memory GB/s", "kernel / memory",
        "a tile: products a cycle",
    )  # fmt: skip
    for core in CORES:
        one, tile = ones[core.level], tiles[core.level]
        rate = one.num_products * _BYTES_PER_WEIGHT / cycles_per_turn(one, core.model)
        print(
            f"| {core.name} | {core.model} | {core.ghz} | {rate:.2f} | {rate * core.ghz:.1f} | "
            f"{core.memory_gbps:.1f} ({core.memory_note}) | {rate * core.ghz / core.memory_gbps:.1f} | "
            f"{tile.num_products / cycles_per_turn(tile, core.model):.1f} |"
        )


def _print_head(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(str(error))
