"""How kernels read what each row may have of its own.

A parameter is a pointer to 32-bit words, the stride from row to row, and a number: at a stride
below 0 the number holds for all rows, and the pointer is to anything at all. So one compiled kernel
takes a number, one for all rows and one for each, of 32 bits or of 64.
"""

# pyright: basic

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def word_of(pointer, row, stride, number):
    """The 32 bits of a row."""
    row = row.to(tl.int64)
    return tl.load(pointer + row * stride, row * 0 + stride >= 0, number)


@triton.jit
def float_of(pointer, row, stride, number):
    return word_of(pointer, row, stride, number).to(tl.float32, bitcast=True)


@triton.jit
def words_of(pointer, row, stride, number):
    """The low and the high half of a row's 64 bits."""
    low = word_of(pointer, row, stride, number.to(tl.int32))
    return low, word_of(pointer + 1, row, stride, (number >> 32).to(tl.int32))
