"""What the fences and the orders are for: faults in small kernels, each of which has to be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from interpreted.children import in_child
from interpreted.fences import ORDERS, SIDES, Fenced, placed, programs

COUNT = 37
BLOCK = 16
GRID = (3,)


@triton.jit
def double(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    tl.store(out + place, 2 * tl.load(x + place, mask), mask)


@triton.jit
def reads_past_the_end(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, 2 * tl.load(x + place), place < count)


@triton.jit
def reads_one_past_the_end(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, 2 * tl.load(x + place, place <= count), place < count)


@triton.jit
def reads_before_the_start(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    value = tl.load(x + place, mask) + 0 * tl.load(x + place - 1, mask)
    tl.store(out + place, 2 * value, mask)


@triton.jit
def writes_past_the_end(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, 2 * tl.load(x + place, place < count))


@triton.jit
def writes_before_the_start(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    value = 2 * tl.load(x + place, mask)
    tl.store(out + place - 1, value, mask)
    tl.store(out + place, value, mask)


@triton.jit
def forgets_the_tail(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count // BLOCK * BLOCK
    tl.store(out + place, 2 * tl.load(x + place, mask), mask)


@triton.jit
def forgets_the_last_program(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (place < count) & (tl.program_id(0) != tl.num_programs(0) - 1)
    tl.store(out + place, 2 * tl.load(x + place, mask), mask)


@triton.jit
def adds_to_what_is_there(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    tl.store(out + place, tl.load(out + place, mask) * 0 + 2 * tl.load(x + place, mask), mask)


@triton.jit
def overlaps_its_neighbour(out, x, count, BLOCK: tl.constexpr):
    """The last of the programs to come is right."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = 2 * tl.load(x + place, place < count)
    tl.store(out + place + BLOCK, value, place + BLOCK < count)
    tl.store(out + place, value, place < count)


@triton.jit
def takes_it_from_its_neighbour(out, x, count, BLOCK: tl.constexpr):
    """The program before has to be through."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    before = tl.load(out + place - BLOCK, mask & (place >= BLOCK), 0.0)
    earlier = tl.load(x + place - BLOCK, mask & (place >= BLOCK), 0.0)
    tl.store(out + place, 2 * tl.load(x + place, mask) + before - 2 * earlier, mask)


@triton.jit
def the_first_program_clears(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) == 0:
        tl.store(out + tl.arange(0, 64), tl.zeros((64,), tl.float32), tl.arange(0, 64) < count)
    mask = place < count
    tl.store(out + place, 2 * tl.load(x + place, mask), mask)


@triton.jit
def the_last_program_finishes(out, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    tl.store(out + place, tl.load(x + place, mask), mask)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        every = tl.arange(0, 64)
        tl.store(out + every, 2 * tl.load(out + every, every < count), every < count)


# Once before any fork, which then has what the interpreter makes at first.
double[GRID](torch.zeros(COUNT), torch.zeros(COUNT), COUNT, BLOCK)

FAULTS = [
    *(reads_past_the_end, reads_one_past_the_end, reads_before_the_start, writes_past_the_end),
    *(writes_before_the_start, forgets_the_tail, forgets_the_last_program, adds_to_what_is_there),
    *(overlaps_its_neighbour, takes_it_from_its_neighbour, the_first_program_clears),
    the_last_program_finishes,
]


def seen(kernel: object) -> str:
    """How it ends on the first side and in the first order in which it is not right, else ""."""

    def body(side: str, order: str) -> Callable[[Callable[[str], None]], None]:
        def run(tell: Callable[[str], None]) -> None:
            tell(f"{side} {order}")
            given = torch.arange(1.0, COUNT + 1)
            (x,) = placed([given], side)
            with programs(order), Fenced(side):
                out = torch.empty_like(x)
                kernel[GRID](out, x, COUNT, BLOCK)  # type: ignore[index]
            assert torch.equal(out, 2 * given)

        return run

    ends = (in_child(body(side, order), 20) for order in ORDERS for side in SIDES)
    return next(filter(None, ends), "")


def test_a_kernel_without_a_fault_passes() -> None:
    assert seen(double) == ""


@pytest.mark.parametrize("kernel", FAULTS, ids=lambda kernel: kernel.__name__)
def test_a_fault_is_seen(kernel: object) -> None:
    assert seen(kernel)
