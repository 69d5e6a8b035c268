"""MATE's products on a simulated device, each summed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hal_musa.simulated.host import check, host, only, register, write

__all__ = ["majors", "result"]

_EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
_SIXTEEN = (torch.float16, torch.bfloat16)
_SCHEMAS = (
    "groupwise(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, str major, int[] granularity, "
    "Tensor(a!) out) -> ()",
    "batched(Tensor a, Tensor b, Tensor? a_scale, Tensor? b_scale, int[] granularity, "
    "Tensor(a!) out) -> ()",
    "ragged(Tensor a, Tensor? a_scale, Tensor b, Tensor? b_scale, Tensor info, str mode, "
    "int[] granularity, int alignment, Tensor(a!) out) -> ()",
    "masked(Tensor a, Tensor? a_scale, Tensor b, Tensor? b_scale, Tensor counts, "
    "int[] granularity, Tensor(a!) out) -> ()",
)


def result(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """The output: what was given, or a new one.

    Raises:
        ValueError: The dtype is neither bfloat16 nor float16.
    """
    if out is not None:
        return out
    if dtype not in _SIXTEEN:
        raise ValueError("Only bf16 and fp16 are supported for out_type!")
    return torch.empty(tuple(shape), dtype=dtype, device=like.device)


def majors(a: str | None, b: str | None) -> None:
    """Refuse operands that are not contiguous in k, which the simulation has not."""
    if (a, b) != ("K", "K"):
        raise NotImplementedError("the simulation of MATE has operands that are major in k alone")


def _scales(x: Tensor | None, name: str, *shape: int) -> Tensor:
    check(x is not None, f"{name} must not be None")
    assert x is not None
    check(x.dtype == torch.float32, f"{name} must be float type")
    check(x.is_contiguous(), f"{name} must be contiguous")
    check(x.shape == shape, f"{name} must be {list(shape)}, and is {list(x.shape)}")
    return host(x)


def _eight(a: Tensor, b: Tensor) -> None:
    only("a", a.dtype, *_EIGHT)
    only("b", b.dtype, *_EIGHT)
    check(a.is_contiguous() and b.is_contiguous(), "a and b must be contiguous")


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _spread(x: Tensor, dim: int, block: int, size: int) -> Tensor:
    return x.repeat_interleave(block, dim).narrow(dim, 0, size)


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """[m, k] times [n, k] with scales [m, k / 128] and [n / 128, k / 128]."""
    (n, k), m = b.shape, len(a)
    rows = _spread(a_scale, 1, 128, k) if k else a_scale.new_zeros(m, 0)
    columns = _spread(_spread(b_scale, 0, 128, n), 1, 128, k)
    return (a.float() * rows) @ (b.float() * columns).T


def _groupwise(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    major: str,
    granularity: list[int],
    out: Tensor,
) -> None:
    _eight(a, b)
    only("d", out.dtype, *_SIXTEEN)
    (m, k), n = a.shape, len(b)
    check(out.shape == (m, n) and b.shape[1] == k, "shapes of a, b and d do not fit")
    check(major in ("K", "MN"), "gemm_fp8_nt_groupwise get unsupported scale_major_mode!")
    known = {(1, 128, 128): (m, _blocks(k, 128), _blocks(n, 128), _blocks(k, 128))}
    known[1, 1, -1] = (m, 1, n, 1)
    shape = known.get((granularity[0], granularity[1], granularity[2]))
    check(shape is not None, "gemm_fp8_nt_groupwise get unsupported scale_granularity_mnk!")
    assert shape is not None
    turned = slice(None, None, 1 if major == "K" else -1)
    rows = _scales(a_scale, "scale_a", *shape[:2][turned])
    columns = _scales(b_scale, "scale_b", *shape[2:][turned])
    if major == "MN":
        rows, columns = rows.T, columns.T
    left, right = host(a), host(b)
    if granularity[2] == -1:
        found = (left.float() * rows) @ (right.float() * columns).T
    else:
        found = _product(left, right, rows, columns)
    write(out, found)


def _batched(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor | None,
    granularity: list[int],
    out: Tensor,
) -> None:
    only("a", a.dtype, *(_SIXTEEN if a_scale is None else _EIGHT))
    only("d", out.dtype, *_SIXTEEN)
    check(a.shape[2] == b.shape[1], "k of a and of b differ")
    found = host(a).float() @ host(b).float()
    if a_scale is not None:
        check(a.stride(-1) == 1 and b.stride(-2) == 1, "k must be contiguous")
        check(granularity == [-1, -1, -1], "the simulation has a scale for each operand")
        found *= _scales(a_scale, "a_scale", *a_scale.shape).reshape(())
        found *= _scales(
            b_scale, "b_scale", *(b_scale.shape if b_scale is not None else ())
        ).reshape(())
    write(out, found)


def _experts(a: Tensor, b: Tensor, a_scale: Tensor | None, b_scale: Tensor | None) -> None:
    if a_scale is None:
        only("a", a.dtype, *_SIXTEEN)
        check(a.dtype == b.dtype, "a and b have to be of one dtype")
        return
    _eight(a, b)
    k = a.shape[-1]
    _scales(a_scale, "scale_a", *a.shape[:-1], _blocks(k, 128))
    _scales(b_scale, "scale_b", len(b), _blocks(b.shape[1], 128), _blocks(k, 128))


def _of_expert(
    a: Tensor, b: Tensor, a_scale: Tensor | None, b_scale: Tensor | None, expert: int
) -> Tensor:
    if a_scale is None or b_scale is None:
        return a.float() @ b[expert].float().T
    return _product(a, b[expert], a_scale, b_scale[expert])


def _tiles(info: list[int], mode: str, alignment: int, total: int) -> list[tuple[int, int, int]]:
    """(first row, last row + 1, expert) of all that is computed."""
    if mode == "per_expert":
        bounds = pairwise(accumulate(info, initial=0))
        return [(start, end, expert) for expert, (start, end) in enumerate(bounds)]
    assert mode == "per_token", "Not supported gemm mode."
    check(alignment in (128, 256), f"alignment_m is 128 or 256, not {alignment}")
    tiles = range(0, total, alignment)
    found = [(start, min(start + alignment, total), info[start]) for start in tiles]
    return [tile for tile in found if tile[2] >= 0]


def _ragged(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    info: Tensor,
    mode: str,
    granularity: list[int],
    alignment: int,
    out: Tensor,
) -> None:
    _experts(a, b, a_scale, b_scale)
    check(granularity in ([], [1, 128, 128]), "unsupported scale_granularity_mnk!")
    check(out.shape == (a.shape[0], b.shape[1]), "out has to be [total, n]")
    left, right = host(a), host(b)
    rows, columns = (None if x is None else host(x) for x in (a_scale, b_scale))
    found = host(out)
    for start, end, expert in _tiles(host(info).tolist(), mode, alignment, len(left)):
        part = None if rows is None else rows[start:end]
        found[start:end] = _of_expert(left[start:end], right, part, columns, expert)


def _masked(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    counts: Tensor,
    granularity: list[int],
    out: Tensor,
) -> None:
    _experts(a, b, a_scale, b_scale)
    check(granularity in ([], [1, 128, 128]), "unsupported scale_granularity_mnk!")
    check(out.shape == (*a.shape[:2], b.shape[1]), "out has to be [experts, max_tokens, n]")
    left, right, found = host(a), host(b), host(out)
    rows, columns = (None if x is None else host(x) for x in (a_scale, b_scale))
    for expert, count in enumerate(host(counts).tolist()):
        part = None if rows is None else rows[expert, :count]
        found[expert, :count] = _of_expert(left[expert, :count], right, part, columns, expert)


_KERNELS = {"groupwise": _groupwise, "batched": _batched, "ragged": _ragged, "masked": _masked}
_library = register("simulated_mate", "FRAGMENT", _SCHEMAS, _KERNELS)
