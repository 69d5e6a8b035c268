"""What NVIDIA's libraries are asked for, and for what not; on a device, that they give it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import hal
import hal_cuda
from hal.op import OPS
from hal_native import attention as attention_reference
from hal_native import gemv as gemv_reference
from hal_native import matmul as reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("hal_cuda's kernels need Triton", allow_module_level=True)

from hal_cuda import attention, crossing, deep_gemm, gemv, matmul

E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
HOPPER = hal.Device("cuda", 0, vendor="NVIDIA", arch=90)
OFFERED = {
    "scaled_mm": matmul.scaled_mm,
    "block_scaled_mm": matmul.block_scaled_mm,
    "fused_gemv": gemv.fused_gemv,
    "varlen_attention": attention.varlen_attention,
}

of_torch = pytest.mark.skipif(
    torch.__version__ < "2.12",
    reason="torch has these products on a CPU since 2.12",
)
on_device = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)


def shaped(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor of which nothing but the shape exists."""
    return torch.empty(shape, dtype=dtype, device="meta")


def codes(*shape: int, dtype: torch.dtype = E4M3, device: str = "cpu") -> Tensor:
    made = torch.Generator().manual_seed(sum(shape))
    if dtype == INT8:
        return torch.randint(-128, 128, shape, generator=made).to(device, INT8)
    return (torch.randn(shape, generator=made) * 60).clamp(-448, 448).to(device, dtype)


def scales(*shape: int, device: str = "cpu") -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 1e-2 + 1e-4).to(device)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("op", OFFERED)
def test_kernels_have_the_signature_of_the_op(op: str) -> None:
    ours, wanted = (inspect.signature(f).parameters for f in (OFFERED[op], OPS[op].contract))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in wanted.values()
    ]


@of_torch
@pytest.mark.parametrize("op", OFFERED)
def test_what_was_measured_on_a_device_is_offered_there(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    kernel = getattr(hal_cuda, op)(HOPPER)[0]
    assert kernel.fn is OFFERED[op]
    assert kernel.graph_safe
    assert not kernel.batch_invariant


@pytest.mark.parametrize("op", OFFERED)
@pytest.mark.parametrize("arch", [None, 80, 100])
def test_nothing_is_offered_elsewhere(op: str, arch: int | None) -> None:
    assert getattr(hal_cuda, op)(hal.Device("cuda", 0, arch=arch)) == []


@pytest.mark.parametrize("version", [None, "12.8"])
def test_an_older_cublas_scales_no_rows(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    assert hal_cuda.scaled_mm(HOPPER) == hal_cuda.block_scaled_mm(HOPPER) == []
    assert hal_cuda.fused_gemv(HOPPER)
    eight = {"x_scale": shaped(3, 4, dtype=F32), "weight_scale": shaped(1, 4, dtype=F32)}
    codes = shaped(3, 512, dtype=E4M3), shaped(128, 512, dtype=E4M3)
    assert "if it knows scales" in str(gemv_call(*codes, **eight))


def scaled_call(
    n: int = 64, k: int = 64, a: torch.dtype = E4M3, b: torch.dtype = E4M3, **options: Any
) -> str | None:
    factors = shaped(3, k, dtype=a), shaped(n, k, dtype=b), shaped(3, dtype=F32)
    kwargs = {"out_dtype": BF16} | options
    return matmul.scaled_mm_supports(*factors, shaped(n, dtype=F32), **kwargs)


def block_call(
    n: int = 256, k: int = 1024, dtype: torch.dtype = E4M3, **options: Any
) -> str | None:
    factors = shaped(3, k, dtype=dtype), shaped(n, k, dtype=dtype)
    by = shaped(3, -(-k // 128), dtype=F32), shaped(-(-n // 128), -(-k // 128), dtype=F32)
    return matmul.block_scaled_mm_supports(*factors, *by, **{"out_dtype": BF16} | options)


def gemv_call(x: Tensor, weight: Tensor, **options: Any) -> str | None:
    return gemv.fused_gemv_supports(x, weight, **options)


def attention_call(
    width: int = 64, dtype: torch.dtype = BF16, q: Tensor | None = None, **options: Any
) -> str | None:
    q = shaped(9, 4, width, dtype=dtype) if q is None else q
    k = shaped(9, 2, q.shape[2], dtype=dtype)
    starts = shaped(2, dtype=torch.int32)
    kwargs = {"causal": True} | options
    return attention.varlen_attention_supports(q, k, k, starts, starts, 9, 9, **kwargs)


def test_what_fits_is_taken() -> None:
    assert scaled_call() is None
    assert scaled_call(a=E5M2, out_dtype=F16, bias=shaped(64, dtype=F16)) is None
    assert scaled_call(a=INT8, b=INT8, out_dtype=F32, bias=shaped(64, dtype=F32)) is None
    assert block_call() is None
    assert gemv_call(shaped(3, 7), shaped(5, 7)) is None
    assert attention_call() is None
    assert attention_call(scale=0.5, causal=False) is None


REFUSED = {
    "16 rows and columns": lambda: scaled_call(n=24),
    "multiple of 16": lambda: scaled_call(k=8),
    "of a multiple": lambda: scaled_call(k=0),
    "no float8_e5m2 with": lambda: scaled_call(a=E5M2, b=E5M2),
    "good enough for float32": lambda: scaled_call(out_dtype=F32),
    "a bias of the dtype": lambda: scaled_call(bias=shaped(64, dtype=F32)),
    "overflow int32": lambda: scaled_call(k=2**17, a=INT8, b=INT8),
    "blocks of 128 x 128": lambda: block_call(block=(64, 128)),
    "16 rows and 128": lambda: block_call(n=200),
    "128 columns": lambda: block_call(k=576),
    "with float8_e4m3fn": lambda: block_call(dtype=E5M2),
    "no better than its sums": lambda: block_call(out_dtype=F16),
    "weights of 16 bits": lambda: gemv_call(shaped(3, 7, dtype=F32), shaped(5, 7, dtype=F32)),
    "of 16 bits alone": lambda: gemv_call(
        shaped(3, 8), shaped(6, 4, dtype=torch.uint8), weight_scale=shaped(6, 1)
    ),
    "before what follows": lambda: gemv_call(
        shaped(3, 512, dtype=E4M3),
        shaped(128, 512, dtype=E4M3),
        x_scale=shaped(3, 4, dtype=F32),
        weight_scale=shaped(1, 4, dtype=F32),
        activation="swiglu",
    ),
    "in float16 and bfloat16": lambda: attention_call(dtype=F32),
    "up to 128 columns": lambda: attention_call(width=136),
    "multiple of 8": lambda: attention_call(width=60),
    "no window, softcap": lambda: attention_call(window=(3, -1)),
    "softcap or sinks": lambda: attention_call(softcap=1.0),
    "or sinks": lambda: attention_call(sinks=shaped(4, dtype=F32)),
    "before it scales": lambda: attention_call(scale=-1.0),
    "values as wide as keys": lambda: attention.flash_supports(
        shaped(9, 4, 64), shaped(9, 2, 64), shaped(9, 2, 72)
    ),
    "begin at multiples": lambda: attention_call(q=shaped(9, 4, 68)[..., :64]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(reason: str) -> None:
    assert reason in str(REFUSED[reason]())


@of_torch
@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("one_for_a", [False, True])
@pytest.mark.parametrize("one_for_b", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_scaled_products_are_those_of_the_reference(
    rows: tuple[int, ...], one_for_a: bool, one_for_b: bool, biased: bool
) -> None:
    a, b = codes(*rows, 64), codes(32, 64)
    by = scales(1) if one_for_a else scales(*rows), scales() if one_for_b else scales(32, 1)
    options: dict[str, Any] = {"out_dtype": BF16, "bias": scales(32).to(BF16) if biased else None}
    got, want = (f(a, b, *by, **options) for f in (matmul.scaled_product, reference.scaled_mm))
    assert got.shape == want.shape
    assert got.is_contiguous()
    torch.testing.assert_close(got, want)


@of_torch
def test_rows_may_begin_anywhere() -> None:
    a, b = codes(9, 83), codes(33, 83)
    for rows in (a[1:, 3:67], a[::2, :64], a[:1, 1:65].expand(5, 64)):
        by = scales(len(rows) + 1)[1:], scales(33)[1:]
        got = matmul.scaled_product(rows, b[1:, 9:73], *by, out_dtype=BF16)
        want = reference.scaled_mm(rows, b[1:, 9:73], *by, out_dtype=BF16)
        torch.testing.assert_close(got, want)


@of_torch
@pytest.mark.parametrize("rows", [(64,), (65,), (3, 67)])
@pytest.mark.parametrize("by_column", [False, True])
def test_scales_of_blocks_lie_as_torch_describes(rows: tuple[int, ...], by_column: bool) -> None:
    # Without data torch checks shapes and strides as it does before it calls cuBLAS.
    a_scale = shaped(*rows, 8, dtype=F32)
    if by_column:
        a_scale = a_scale.mT.contiguous().mT
    factors = shaped(*rows, 1024, dtype=E4M3), shaped(256, 1024, dtype=E4M3)
    out = matmul.blocks_product(*factors, a_scale, shaped(2, 8, dtype=F32))
    assert (out.shape, out.dtype) == ((*rows, 256), BF16)


def test_without_a_measurement_the_portable_kernel_serves() -> None:
    assert not crossing.wins("linear", 4096, torch.ones(1))
    assert set(crossing.ROWS[90]) <= set(crossing.LIBRARIES)


def test_others_are_for_who_names_them() -> None:
    *_, first, second = hal_cuda.varlen_attention(HOPPER)
    assert (first.name, first.on_request) == ("torch", None)
    assert (second.name, "times as long" in second.on_request) == ("flash", True)


class DeepGemm(ModuleType):
    """What of the library is called, with its signature."""

    def fp8_gemm_nt(
        self,
        a: tuple[Tensor, Tensor],
        b: tuple[Tensor, Tensor],
        d: Tensor,
        c: Tensor | None = None,
        recipe: tuple[int, int, int] | None = None,
        compiled_dims: str = "nk",
        disable_ue8m0_cast: bool = False,
    ) -> None:
        """``a`` and ``b`` with a scale for each block, fp32 as they are."""
        assert disable_ue8m0_cast
        assert all(part.is_contiguous() for part in (*a, *b, d))
        d.copy_(reference.block_scaled_mm(a[0], b[0], a[1], b[1], out_dtype=d.dtype))


@pytest.mark.parametrize("rows", [(3,), (2, 2), (0,), ()])
def test_deep_gemm_is_called_as_it_wants(
    rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deep_gemm", DeepGemm("deep_gemm"))
    a, b = codes(*rows, 530)[..., 3:515], codes(128, 512)
    by = scales(*rows, 8)[..., ::2], scales(1, 4)
    got = deep_gemm.block_scaled_mm(a, b, *by, out_dtype=BF16)
    assert torch.equal(got, reference.block_scaled_mm(a, b, *by, out_dtype=BF16))


def test_deep_gemm_is_offered_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep_gemm.py").write_text("raise ImportError")  # It is not imported yet.
    before = hal_cuda.block_scaled_mm(HOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    after = hal_cuda.block_scaled_mm(HOPPER)
    assert [k.name for k in after] == [*(k.name for k in before), "deep_gemm"]
    assert "was not measured" in after[-1].on_request
    assert after[-1].supports is matmul.block_scaled_mm_supports


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries serve any number of rows."""
    arch = hal.device("cuda").arch or 0
    monkeypatch.setattr(
        crossing, "ROWS", {arch: dict.fromkeys(set(crossing.LIBRARIES) - {"flash"}, 1)}
    )


# Twice what rounding the result once makes of it, as the kit allows.
GATES = {BF16: 2.5e-3, F16: 3.2e-4, F32: 5e-7}


@on_device
@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("rows", [1, 16, 33, 130])
@pytest.mark.parametrize("dtype", [E4M3, INT8])
def test_cublas_scales_rows(rows: int, dtype: torch.dtype) -> None:
    a, b = (
        codes(rows, 1408, dtype=dtype, device="cuda"),
        codes(80, 1408, dtype=dtype, device="cuda"),
    )
    by = scales(rows, device="cuda"), scales(80, device="cuda")
    for out in (F16, BF16) if dtype == E4M3 else (F32, F16, BF16):
        with hal.use("cuda"):
            got = hal.ops.scaled_mm(a, b, *by, out_dtype=out)
        wide = (a.double() @ b.double().T) * by[0][:, None].double() * by[1].double()
        assert distance(got, wide) < GATES[out]


@on_device
@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("rows", [1, 2, 64, 65, 67, 127])
@pytest.mark.parametrize(("n", "k"), [(384, 1024), (336, 640)])
def test_cublas_scales_blocks(rows: int, n: int, k: int) -> None:
    a, b = codes(rows, k, device="cuda"), codes(n, k, device="cuda")
    by = scales(rows, k // 128, device="cuda"), scales(3, k // 128, device="cuda")
    with hal.use("cuda"):
        got = hal.ops.block_scaled_mm(a, b, *by, out_dtype=BF16)
        same = hal.ops.fused_gemv(a, b, x_scale=by[0], weight_scale=by[1])
    want = reference.block_scaled_mm(a, b, *by, out_dtype=F32)
    assert distance(got, want) < GATES[BF16]
    assert torch.equal(got, same)


@on_device
@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("after", [{}, {"activation": "swiglu"}, {"norm_weight": True}])
def test_cublas_multiplies_many_rows(dtype: torch.dtype, after: dict[str, Any]) -> None:
    x, weight = torch.randn(130, 777, device="cuda"), torch.randn(66, 777, device="cuda") / 16
    options = after if "norm_weight" not in after else {"norm_weight": scales(66, device="cuda")}
    with hal.use("cuda"):
        got = hal.ops.fused_gemv(x.to(dtype), weight.to(dtype), **options)
    given = x.to(dtype).double(), weight.to(dtype).double()
    assert distance(got, gemv_reference.fused_gemv(*given, **options)) < GATES[dtype]


def attended_alike(
    given: list[Tensor], starts: tuple[Tensor, Tensor], causal: bool, kernel: str = "cuda"
) -> None:
    """Require what hal_cuda gives to be what the reference gives in float32, NaN in place."""
    rest = (*starts, len(given[0]), len(given[1]))
    with hal.use(kernel):
        out, lse = hal.ops.varlen_attention(*given, *rest, causal=causal)
    wide = (x.float() for x in given)
    want = attention_reference.varlen_attention(*wide, *rest, causal=causal)
    assert torch.equal(out.isnan(), want[0].isnan())
    assert torch.equal(out.isinf(), want[0].isinf())
    known = want[0].isfinite()
    assert not want[0][known].any() or distance(out[known], want[0][known]) < GATES[out.dtype]
    torch.testing.assert_close(lse, want[1], atol=1e-3, rtol=1e-4, equal_nan=True)


def broken_inputs(dtype: torch.dtype, tokens: int, keys: int) -> list[Tensor]:
    sizes = (tokens, 8), (keys, 2), (keys, 2)
    given = [torch.randn(*size, 128, device="cuda").to(dtype) for size in sizes]
    given[0][tokens // 3, 1, 5] = torch.nan
    given[1][keys // 2, 1, 5] = torch.nan
    given[2][keys - 1, 0, 3] = torch.inf
    given[2][keys // 4, 1, 7] = torch.nan
    return given


@on_device
@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("tokens", [(1024, 1024), (1100, 1000), (70, 0)])
def test_cudnn_attends(dtype: torch.dtype, tokens: tuple[int, int]) -> None:
    starts = torch.tensor([0, tokens[1]], device="cuda", dtype=torch.int32)
    attended_alike(broken_inputs(dtype, tokens[0], tokens[0]), (starts, starts), causal=True)


@on_device
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["flash", "fa3"])
def test_flash_attends(kernel: str, dtype: torch.dtype, index: torch.dtype, causal: bool) -> None:
    if kernel not in {each.name for each in hal_cuda.varlen_attention(hal.device("cuda"))}:
        pytest.skip(f"there is no {kernel}")
    # More queries than keys, none of either, and padding.
    starts = torch.tensor([[0, 300, 300, 340, 343], [0, 200, 210, 210, 600]], device="cuda")
    lie = starts[0].to(index), starts[1].to(index)
    attended_alike(broken_inputs(dtype, 350, 620), lie, causal, f"cuda:{kernel}")
