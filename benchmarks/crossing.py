"""Time NVIDIA's libraries beside Triton over the number of rows: where ``hal_cuda`` hands over.

    python benchmarks/crossing.py                           # every op
    python benchmarks/crossing.py fused_gemv scaled_mm      # some

Each number of rows gives a line: microseconds of both in a graph with a cold cache, and how far
the results of each are from the reference's, as a relative norm. What ``hal_cuda.crossing`` holds
is where the first is below the second from there on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

import hal
from hal_cuda import crossing
from timing import Graph, copies, in_turn, require_cuda

COLD = 180 * 2**20
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
FEW = (8, 16, 32, 48, 64, 96, 128, 256, 1024, 4096)
LONG = (512, 1024, 1536, 2048, 3072, 4096, 8192, 16384)
Make = Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16)


def codes(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * 60).clamp(-448, 448).to(E4M3)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, device="cuda") * 1e-2 + 1e-4


def products() -> Iterator[tuple[str, str, tuple[int, ...], Make]]:
    for n, k in ((4096, 4096), (28672, 4096), (4096, 14336), (2304, 7168), (7168, 2048)):
        shape = f"n {n}, k {k}"

        def blocks(m: int, n: int = n, k: int = k) -> Any:
            factors = codes(m, k), codes(n, k), scales(m, k // 128), scales(n // 128, k // 128)
            return factors, {"out_dtype": BF16}

        def scaled(m: int, n: int = n, k: int = k) -> Any:
            return (codes(m, k), codes(n, k), scales(m), scales(n)), {"out_dtype": BF16}

        def integers(m: int, n: int = n, k: int = k) -> Any:
            a, b = (torch.randint(-127, 128, (r, k), device="cuda").to(torch.int8) for r in (m, n))
            return (a, b, scales(m), scales(n)), {"out_dtype": BF16}

        def plain(m: int, n: int = n, k: int = k) -> Any:
            return (randn(m, k), randn(n, k)), {}

        def gated(m: int, n: int = n, k: int = k) -> Any:
            return (randn(m, k), randn(n, k)), {"activation": "swiglu"}

        def normed(m: int, n: int = n, k: int = k) -> Any:
            return (randn(m, k), randn(n, k)), {"norm_weight": randn(n)}

        def eight(m: int, n: int = n, k: int = k) -> Any:
            by = {"x_scale": scales(m, k // 128), "weight_scale": scales(n // 128, k // 128)}
            return (codes(m, k), codes(n, k)), by

        yield "block_scaled_mm", shape, FEW, blocks
        yield "scaled_mm", shape, FEW, scaled
        yield "scaled_mm", f"{shape}, int8", FEW, integers
        yield "fused_gemv", shape, FEW, plain
        yield "fused_gemv", f"{shape}, swiglu", FEW, gated
        yield "fused_gemv", f"{shape}, 8 bits", FEW, eight
        if n == 4096:
            yield "fused_gemv", f"{shape}, normed", FEW, normed


def attentions() -> Iterator[tuple[str, str, tuple[int, ...], Make]]:
    for heads, kv_heads, width in ((32, 8, 128), (32, 4, 128), (16, 16, 64)):

        def alone(m: int, heads: int = heads, kv: int = kv_heads, width: int = width) -> Any:
            starts = torch.tensor([0, m], device="cuda", dtype=torch.int32)
            q, k, v = (randn(m, count, width) for count in (heads, kv, kv))
            return (q, k, v, starts, starts, m, m), {"causal": True}

        shape = f"{heads} on {kv_heads} heads of {width}"
        yield "varlen_attention", shape, LONG, alone
        yield "varlen_attention", f"{shape}, not of 1024", (2100, 4100, 8200), alone


def by(backend: str, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with hal.use(backend):
        return getattr(hal.ops, op)(*args, **kwargs)


def served(backend: str, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    with hal.use(backend):
        choice = hal.explain(op, *args, **kwargs)
    return None if choice.chosen else next(c.reason for c in choice.candidates)


def error(backend: str, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    def numbers(results: Any) -> torch.Tensor:
        return (results[0] if isinstance(results, tuple) else results).double()

    got, want = (numbers(by(name, op, args, kwargs)) for name in (backend, "native"))
    return float((got - want).norm() / want.norm())


def line(op: str, shape: str, rows: int, make: Make) -> None:
    first, kwargs = make(rows)
    tensors = [value for value in first if isinstance(value, torch.Tensor)]
    moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    several = [first, *(make(rows)[0] for _ in range(copies(moved, COLD) - 1))]
    names = [name for name in ("cuda", "triton") if served(name, op, first, kwargs) is None]
    calls = {
        name: [lambda args=args, name=name: by(name, op, args, kwargs) for args in several]
        for name in names
    }
    times = in_turn({name: Graph(each) for name, each in calls.items()})
    small = rows <= 2048 if op == "varlen_attention" else rows <= 1024
    wrong = {name: error(name, op, first, kwargs) if small else float("nan") for name in names}
    told = "  ".join(f"{name} {times[name].us:9.2f} us {wrong[name]:.1e}" for name in names)
    ratio = times["triton"].us / times["cuda"].us if len(names) == 2 else float("nan")
    print(f"{op:17} {shape:28} {rows:6}  {told}  ratio {ratio:.2f}", flush=True)


def main() -> None:
    require_cuda()
    wanted = sys.argv[1:]
    device = hal.device("cuda")
    every = set(crossing.LIBRARIES) - {"flash"}
    crossing.ROWS = {device.arch or 0: dict.fromkeys(every, 1)}
    print(device.name, torch.__version__)
    for op, shape, sizes, make in (*products(), *attentions()):
        if not wanted or op in wanted:
            for rows in sizes:
                line(op, shape, rows, make)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
