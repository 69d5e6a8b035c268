"""Declarations of the sampling operators: from logits to token ids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.checks import check, check_dtype, check_floating, check_shape
from hal.op import op

if TYPE_CHECKING:
    from collections.abc import Sequence

INDEX = torch.int32, torch.int64
BITS64 = (torch.int64,)


def _check_vocab(name: str, x: Tensor) -> None:
    check_floating(**{name: x})
    nonempty = x.dim() > 0 and x.shape[-1] > 0
    check(nonempty, f"{name} must have a last dimension of at least 1", **{name: x})


def _check_limit(name: str, value: Tensor | float | None, shape: Sequence[int]) -> None:
    """Require a number, or floating point numbers in ``shape`` or in no dimension at all."""
    if isinstance(value, Tensor):
        check_floating(**{name: value})
        if value.dim() > 0:
            check_shape(shape, **{name: value})
    elif value is not None:
        check(-math.inf <= value <= math.inf, f"{name} must not be NaN")


def _check_integer(
    name: str, value: Tensor | int | None, shape: Sequence[int], dtypes: Sequence[torch.dtype]
) -> None:
    """Require a plain integer, or integers in ``shape`` or in no dimension at all."""
    if isinstance(value, Tensor):
        check_dtype(dtypes, **{name: value})
        if value.dim() > 0:
            check_shape(shape, **{name: value})


def _check_indices(indices: Tensor | None) -> None:
    if indices is not None:
        check_dtype(INDEX, indices=indices)
        check(indices.dim() == 1, "indices must have one dimension", indices=indices)


@op
def softmax(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    """Probabilities from logits: ``exp(logits / temperature)``, divided by the sum over the row.

    Computed in float32 (float64 for float64) as ``exp((logits - max) / temperature)``, so that no
    finite logits and no small temperature overflow. A temperature of 0, or one that rounds to 0 in
    that precision, gives 1 to the largest logit (ties: the lowest index) and 0 to the others. A
    logit of -inf gives 0; a row of nothing else is all zeros. NaN, or +inf at a temperature above
    0, makes its row NaN.

    Args:
        logits: [..., vocab], floating point, at least one column.
        temperature: One number, or floating point of shape [] or [...]. A negative number is
            refused; within a tensor it counts as 0, and NaN makes its row NaN.

    Returns:
        [..., vocab] float32, or float64 for float64 logits.

    Example:
        >>> hal.ops.softmax(torch.tensor([[0.0, 1.0, 1.0]]), temperature=torch.tensor([0.5]))
        tensor([[0.0634, 0.4683, 0.4683]])
        >>> hal.ops.softmax(torch.tensor([[0.0, 1.0, 1.0]]), temperature=0.0)
        tensor([[0., 1., 0.]])
    """
    _check_vocab("logits", logits)
    _check_limit("temperature", temperature, logits.shape[:-1])
    if not isinstance(temperature, Tensor):
        check(temperature >= 0, "temperature must not be negative", temperature=temperature)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape, dtype=dtype)


@op
def top_k_renorm(probs: Tensor, top_k: Tensor | int) -> Tensor:
    """Keep the ``top_k`` largest probabilities of a row, zero the rest, divide by what is left.

    Never more than ``top_k`` tokens are kept: of equal ones the lowest indices. ``top_k`` of 0 or
    below, or of vocab and above, keeps all, and the row is normalised all the same. Computed in
    float32 (float64 for float64) and rounded once; a row with NaN is NaN, and a row that sums to 0
    is zeros.

    Args:
        probs: [..., vocab], floating point, finite and not negative, at least one column; a row
            need not sum to 1.
        top_k: One number, or int32 or int64 of shape [] or [...].

    Returns:
        [..., vocab], the dtype of ``probs``.

    Example:
        >>> hal.ops.top_k_renorm(torch.tensor([[0.25, 0.5, 0.25]]), 2)
        tensor([[0.3333, 0.6667, 0.0000]])
    """
    _check_vocab("probs", probs)
    _check_integer("top_k", top_k, probs.shape[:-1], INDEX)
    return probs.new_empty(probs.shape)


@op
def top_p_renorm(probs: Tensor, top_p: Tensor | float) -> Tensor:
    """Keep the tokens that less than ``top_p`` of mass precedes, zero the rest, renormalise.

    Tokens are in descending order, equal ones by index; the mass before a token is the sum of the
    probabilities before it, as given (a row that does not sum to 1 is not normalised first), and a
    token with exactly ``top_p`` before it is dropped. The first token is always kept, whatever
    ``top_p``; a ``top_p`` of 1 or above keeps all. Computed in float32 (float64 for float64), to
    which ``top_p`` is rounded as well, and rounded once; a row with NaN is NaN, and a row that sums
    to 0 is zeros.

    Args:
        probs: [..., vocab], floating point, finite and not negative, at least one column.
        top_p: One number, or floating point of shape [] or [...].

    Returns:
        [..., vocab], the dtype of ``probs``.

    Example:
        >>> hal.ops.top_p_renorm(torch.tensor([[0.25, 0.5, 0.25]]), 0.75)
        tensor([[0.3333, 0.6667, 0.0000]])
    """
    _check_vocab("probs", probs)
    _check_limit("top_p", top_p, probs.shape[:-1])
    return probs.new_empty(probs.shape)


@op
def min_p_renorm(probs: Tensor, min_p: Tensor | float) -> Tensor:
    """Keep the probabilities ``>= min_p * max``, zero the rest, divide by what is left.

    ``max`` is the row's largest probability and ``min_p`` is first brought into [0, 1]: 0 or below
    keeps all, 1 or above the tokens that tie with the largest. Computed in float32 (float64 for
    float64), to which ``min_p`` and the product are rounded as well, and rounded once; a row with
    NaN is NaN, and a row that sums to 0 is zeros.

    Args:
        probs: [..., vocab], floating point, finite and not negative, at least one column; a row
            need not sum to 1.
        min_p: One number, or floating point of shape [] or [...].

    Returns:
        [..., vocab], the dtype of ``probs``.

    Example:
        >>> hal.ops.min_p_renorm(torch.tensor([[0.25, 0.625, 0.125]]), 0.25)
        tensor([[0.2857, 0.7143, 0.0000]])
    """
    _check_vocab("probs", probs)
    _check_limit("min_p", min_p, probs.shape[:-1])
    return probs.new_empty(probs.shape)


@op
def sample(
    probs: Tensor,
    *,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    min_p: Tensor | float | None = None,
    seed: Tensor | int,
    offset: Tensor | int,
    indices: Tensor | None = None,
) -> Tensor:
    """Draw a token for each row: ``argmax(log(p) - log(E))`` over the tokens that the limits leave.

    A token may be drawn iff its probability is above 0, its rank in descending order (equal ones by
    index) is below ``top_k``, the mass before it in that order is below ``top_p``, and it is ``>=
    min_p * max``: all on the given probabilities, as in ``top_k_renorm``, ``top_p_renorm`` and
    ``min_p_renorm``, and never on what another limit has left. A row need not sum to 1. NaN counts
    as 0, and a row without any token to draw gives id 0.

    ``E`` is an exponential variate that depends on the row's seed and offset and on the token id
    alone, so that the same ones give the same token on every backend, whatever else is in the batch
    and whatever the limits, up to rounding where two scores or a limit all but coincide::

        key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
        counter = offset & 0xFFFFFFFF, offset >> 32 & 0xFFFFFFFF, token // 4, 0
        w = word token % 4 of the four of Philox4x32-10(counter, key)
        u = min((float(w) + 0.5) / 2**32, largest number below 1)
        E = -log1p(-u)

    in float32 (float64 for float64 probabilities), each step rounded to nearest; scores that tie
    give the lowest index. Philox4x32-10 is that of Salmon et al., "Parallel random numbers: as easy
    as 1, 2, 3" (SC 2011): ten rounds with the multipliers 0xD2511F53 and 0xCD9E8D57 and the key
    steps 0x9E3779B9 and 0xBB67AE85. Advance ``offset`` by one from draw to draw; nothing is read
    back to the host, so a captured graph may advance the tensors itself.

    Args:
        probs: [probability rows, vocab], floating point, at most 2**68, at least one column.
        top_k: One number, or int32 or int64 of shape [] or [rows]; 0 or below, or vocab or above,
            is no limit, as is None.
        top_p: One number, or floating point of shape [] or [rows]; 1 or above is no limit, as is
            None, and the first token passes whatever ``top_p``.
        min_p: One number, or floating point of shape [] or [rows], brought into [0, 1]; None is no
            limit.
        seed: [rows] int64, of which all 64 bits count; or one number, and row r has seed + r modulo
            2**64.
        offset: int64 of shape [] or [rows], or one number for all rows; all 64 bits count.
        indices: [rows], int32 or int64: the probability row that each row draws from, which may
            repeat; an index out of range is not checked, as that would wait for the device. None is
            each its own. ``seed``, ``offset`` and the limits go by the row drawn, not by the
            probability row.

    Returns:
        [rows] int32.

    Example:
        >>> probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        >>> rows = torch.tensor([0, 0, 0, 0])
        >>> hal.ops.sample(probs, top_k=2, seed=5, offset=0, indices=rows)
        tensor([3, 2, 3, 3], dtype=torch.int32)
    """
    _check_vocab("probs", probs)
    check(probs.dim() == 2, "probs must be [rows, vocab]", probs=probs)
    _check_indices(indices)
    rows = (probs if indices is None else indices).shape[:1]
    _check_integer("top_k", top_k, rows, INDEX)
    _check_limit("top_p", top_p, rows)
    _check_limit("min_p", min_p, rows)
    _check_integer("seed", seed, rows, BITS64)
    if isinstance(seed, Tensor):
        check_shape(rows, seed=seed)  # A lone seed would give every row the same noise.
    _check_integer("offset", offset, rows, BITS64)
    return probs.new_empty(rows, dtype=torch.int32)


@op(mutates=("logits",))
def apply_token_bitmask_(
    logits: Tensor, bitmask: Tensor, *, indices: Tensor | None = None
) -> Tensor:
    """Set logits to -inf where the token's bit ``bitmask[..., t // 32] >> t % 32 & 1`` is 0.

    The lowest bit of a word is its first token. Tokens beyond the mask are forbidden; bits beyond
    the vocabulary are ignored. An allowed logit keeps its bits, and a forbidden one is -inf
    whatever it was.

    Args:
        logits: [..., vocab], floating point, written to.
        bitmask: [..., words] int32, words at most ceil(vocab / 32): without ``indices`` one row of
            bits for each row of ``logits``, with them [rows, words].
        indices: [rows], int32 or int64: the row of ``logits`` [all rows, vocab] that each row of
            bits is for; the others stay as they are. They are distinct and in range, which is not
            checked, as that would wait for the device.

    Returns:
        ``logits``.

    Example:
        >>> bitmask = torch.tensor([[0b0101]], dtype=torch.int32)
        >>> hal.ops.apply_token_bitmask_(torch.zeros(1, 4), bitmask)
        tensor([[0., -inf, 0., -inf]])
    """
    check_floating(logits=logits)
    check(logits.dim() > 0, "logits must be [..., vocab]", logits=logits)
    check_dtype((torch.int32,), bitmask=bitmask)
    _check_indices(indices)
    if indices is not None:
        check(logits.dim() == 2, "logits must be [rows, vocab] with indices", logits=logits)
    rows = logits.shape[:-1] if indices is None else indices.shape
    matches = bitmask.dim() > 0 and tuple(bitmask.shape[:-1]) == tuple(rows)
    check(matches, lambda: f"bitmask must have shape {[*rows, 'words']}", bitmask=bitmask)
    fits = (bitmask.shape[-1] - 1) * 32 < logits.shape[-1]
    check(fits, "bitmask must have at most ceil(vocab / 32) words", bitmask=bitmask, logits=logits)
    return logits
