"""What other libraries are given on NVIDIA's devices, and what is said of them; there, if right."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hal
import hal_cuda
from hal.offers import Offer, offers
from hal.op import OPS
from hal.policy import Entry, Policy
from hal.select import Choice, choose
from hal.testing.compare import assert_close
from hal.testing.records import RECORDS
from hal.testing.subject import HOST, Subject, expected, results, samples
from hal_cuda import fa3, flashinfer, libraries, sgl_kernel
from hal_cuda.measured import MEASURED
from offering import NATIVE, backend, installed

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HOPPER = hal.Device("cuda", 0, vendor="NVIDIA", arch=90)
RIGHT = [
    *(("sgl_kernel", op) for op in sgl_kernel._RIGHT),
    *(("flashinfer", op) for op in flashinfer._RIGHT),
]
WRONG = [
    *(("sgl_kernel", op) for op in sgl_kernel._WRONG),
    *(("flashinfer", op) for op in flashinfer._WRONG),
]
NAMES = "sgl_kernel", "flashinfer"
MODULES = {"sgl_kernel": sgl_kernel, "flashinfer": flashinfer}

on_device = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a device of compute capability 8.0",
)


def shaped(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor of which nothing but the shape exists."""
    return torch.empty(shape, dtype=dtype, device="meta")


def as_wanted(*tensors: Tensor) -> None:
    """Require what their vectors of 16 bytes need."""
    for each in tensors:
        assert each.is_contiguous()
        assert each.data_ptr() % 16 == 0


def norm(out: Tensor, x: Tensor, weight: Tensor, eps: float, more: float) -> None:
    as_wanted(out, x, weight)
    assert x.dim() == 2
    assert x.dtype == weight.dtype == out.dtype != F32
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out.copy_(wide * factor * (weight.float() + more))


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, more: float) -> None:
    as_wanted(x, residual, weight)
    assert x.dtype == residual.dtype
    total = x.float() + residual.float()
    residual.copy_(total)
    factor = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    x.copy_(total * factor * (weight.float() + more))


def gate(out: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
    as_wanted(out, x)
    half = out.shape[-1]
    assert x.shape == (len(out), 2 * half)
    assert half * x.itemsize % 16 == 0
    wide = x.float()
    out.copy_(activation(wide[:, :half]) * wide[:, half:])


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_GATES = {"silu_and_mul": silu, "gelu_and_mul": gelu, "gelu_tanh_and_mul": gelu_tanh}
_NORM = "(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()"
_ADD = "(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()"


def moe_sum(x: Tensor, out: Tensor, scale: float) -> None:
    as_wanted(x, out)
    assert x.dim() == 3
    whole = x.shape[2] // 16 * 16  # What is beyond is not written.
    out[:, :whole].copy_((x.float().sum(1) * scale)[:, :whole])


def _early(function: Callable[..., None], more: float) -> Callable[..., None]:
    def run(*given: Any) -> None:
        *given, early = given
        assert early is False  # There is no device that could.
        function(*given, more)

    return run


SCHEMAS: dict[str, tuple[str, Callable[..., None]]] = {
    "rmsnorm": (_NORM, _early(norm, 0.0)),
    "gemma_rmsnorm": (_NORM, _early(norm, 1.0)),
    "fused_add_rmsnorm": (_ADD, _early(add_norm, 0.0)),
    "gemma_fused_add_rmsnorm": (_ADD, _early(add_norm, 1.0)),
    "moe_sum_reduce": (
        "(Tensor input, Tensor output, float routed_scaling_factor) -> ()",
        moe_sum,
    ),
    **{
        name: ("(Tensor! out, Tensor input) -> ()", lambda out, x, f=f: gate(out, x, f))
        for name, f in _GATES.items()
    },
}
"""The schemas of sglang-kernel 0.4.5, with what they do."""


def declare(only: dict[str, tuple[str, Callable[..., None]]]) -> torch.library.Library:
    made = torch.library.Library("sgl_kernel", "FRAGMENT")
    for name, (schema, function) in only.items():
        made.define(f"{name}{schema}")
        made.impl(name, function, "CompositeExplicitAutograd")
    return made


@pytest.fixture
def sgl() -> Iterator[None]:
    """Its operators, as they are when its shared object was loaded."""
    if hasattr(torch.ops.sgl_kernel, "rmsnorm"):
        pytest.skip("it is really there")
    made = declare(SCHEMAS)
    yield
    made._destroy()


def rope(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor
) -> tuple[Tensor, Tensor]:
    """Neighbouring halves in float32, with the signature of FlashInfer's, is_neox left out."""
    as_wanted(positions, query, key, cos_sin_cache)
    assert cos_sin_cache.dtype == F32
    assert query.dim() == key.dim() == 2
    cos, sin = cos_sin_cache[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    turned = []
    for heads in query, key:
        wide = heads.view(len(heads), -1, head_size).float()
        a, b, rest = wide.split((cos.shape[2], cos.shape[2], head_size - 2 * cos.shape[2]), dim=2)
        whole = torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=2)
        turned.append(whole.to(heads.dtype).view(heads.shape))
    return turned[0], turned[1]


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(members)
    return made


def stand_in() -> dict[str, ModuleType]:
    """What of FlashInfer is called, with its signatures."""

    def normed(more: float) -> Callable[..., Tensor]:
        def run(
            input: Tensor,
            weight: Tensor,
            eps: float = 1e-6,
            out: Any = None,
            enable_pdl: Any = None,
        ) -> Tensor:
            assert enable_pdl is False
            norm(out, input, weight, eps, more)
            return out

        return run

    def summed(more: float) -> Callable[..., None]:
        def run(
            input: Tensor,
            residual: Tensor,
            weight: Tensor,
            eps: float = 1e-6,
            enable_pdl: Any = None,
        ) -> None:
            assert enable_pdl is False
            add_norm(input, residual, weight, eps, more)

        return run

    def gated(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def run(input: Tensor, out: Any = None, enable_pdl: Any = None) -> Tensor:
            gate(out, input, activation)
            return out

        return run

    norms = {"rmsnorm": normed(0), "gemma_rmsnorm": normed(1)}
    norms |= {"fused_add_rmsnorm": summed(0), "gemma_fused_add_rmsnorm": summed(1)}
    parts = {
        "norm": norms,
        "activation": {name: gated(function) for name, function in _GATES.items()},
        "rope": {"apply_rope_with_cos_sin_cache": rope},
    }
    made = {f"flashinfer.{part}": module(f"flashinfer.{part}", **of) for part, of in parts.items()}
    return made | {each: module(each) for each in ("flashinfer", "flashinfer_jit_cache")}


@pytest.fixture
def fi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, each in stand_in().items():
        monkeypatch.setitem(sys.modules, name, each)
    libraries._imported.cache_clear()


@pytest.fixture(autouse=True)
def imported_anew() -> Iterator[None]:
    yield
    libraries._imported.cache_clear()


def found(op: str, device: hal.Device = HOPPER) -> dict[str, hal.Kernel]:
    return {k.name: k for k in getattr(hal_cuda, op)(device) if k.name in NAMES}


def chosen(op: str, *args: Any, use: str = "") -> Choice:
    """The choice that hal makes of what hal_cuda and the reference have."""
    policy = Policy((Entry("use", op, (use,)),) if use else ())
    ours = backend("cuda", devices=("cuda",), ours=True, **{op: getattr(hal_cuda, op)(HOPPER)})
    with installed(ours, NATIVE):
        return choose(OPS[op], HOPPER, policy, OPS[op].flatten(args, {}) if args else None)


def agrees(subject: Subject) -> int:
    """Require what the kit's oracle says of each sample that is taken; how many there were."""
    taken = [s for s in samples(subject.record) if subject.refusal(s) is None]
    for sample in taken:
        flat = subject.flat(sample)
        got = results(subject.op.call(subject.kernel.fn, flat))
        for each, want in zip(got, expected(subject.record, sample), strict=True):
            assert each.is_contiguous()
            assert_close(each.to(HOST), want, subject.record.gates.get(each.dtype, 0.0))
        written(subject, subject.flat(sample), got)
    return len(taken)


def written(subject: Subject, flat: list[Any], want: tuple[Tensor, ...]) -> None:
    """Require of the form that overwrites, if there is one, the same bits."""
    if subject.kernel.inplace is None:
        return
    targets = [flat[i] for i in subject.op.overwritten]
    if any(0 in each.stride() for each in targets):
        return  # Nothing may be written into what is expanded.
    subject.op.call(subject.kernel.inplace, flat)
    for got, wanted in zip(targets, want, strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize(("library", "op"), RIGHT)
@pytest.mark.usefixtures("sgl", "fi")
def test_a_library_is_called_as_it_wants(library: str, op: str) -> None:
    where = hal.device("cpu")
    subject = Subject("cuda", OPS[op], found(op)[library], where, RECORDS[op])
    assert agrees(subject) > 3


@pytest.mark.parametrize(("library", "op"), RIGHT)
@pytest.mark.usefixtures("sgl", "fi")
def test_what_is_right_is_there_for_who_names_it(library: str, op: str) -> None:
    choice = chosen(op)
    by_name = {str(each): each for each in choice.candidates}
    reason = by_name[f"cuda:{library}"].reason
    if MEASURED[90].get((library, op)):
        shown = (
            "times as long as what hal",
            "if its condition holds",
            "cuda:sgl_kernel comes first",
        )
        assert any(text in reason for text in shown)
    else:
        assert reason == "on request only: it was not measured beside what hal chooses here"
    named = chosen(op, use=f"cuda:{library}").chosen
    assert str(named) == f"cuda:{library}"
    assert found(op)[library].graph_safe


@pytest.mark.parametrize(("library", "op"), WRONG)
@pytest.mark.usefixtures("sgl", "fi")
def test_what_is_wrong_is_refused_with_the_reason(library: str, op: str) -> None:
    reason = MODULES[library]._WRONG[op]
    assert found(op)[library].refused == reason
    by_backend = [each.reason for each in chosen(op).candidates if each.backend == "cuda"]
    assert f"{library}: {reason}" in by_backend
    assert chosen(op, use=f"cuda:{library}").chosen is None


@pytest.mark.usefixtures("sgl")
def test_sgl_kernel_is_chosen_where_it_was_quicker() -> None:
    most, least = shaped(8192, 28672), shaped(1024, 28672)
    assert str(chosen("silu_and_mul", most).chosen) == "cuda:sgl_kernel"
    few = chosen("silu_and_mul", least)
    assert str(few.chosen) == "native:torch"
    assert "is chosen from 134217728 elements on" in few.candidates[0].reason
    named = chosen("silu_and_mul", least, use="cuda:sgl_kernel")
    assert str(named.chosen) == "cuda:sgl_kernel"
    # It is not able to take float32, whoever asks.
    wide = chosen("silu_and_mul", most.float(), use="cuda:sgl_kernel")
    assert "in float16 and bfloat16" in wide.candidates[0].reason
    other = {k.name: k for k in hal_cuda.silu_and_mul(hal.Device("cuda", 0, arch=80))}
    assert other["sgl_kernel"].on_request == "it was not measured beside what hal chooses here"


def test_who_has_no_library_sees_none() -> None:
    if any(MODULES[name].LIBRARY.there for name in NAMES):
        pytest.skip("there is one")
    assert not any(found(op) for op in OPS)


@pytest.mark.usefixtures("sgl", "fi")
def test_a_device_that_libraries_are_not_built_for_has_none() -> None:
    assert not any(found(op, hal.Device("cuda", 0, arch=75)) for op in OPS)
    assert set(found("rms_norm", hal.Device("cuda", 0, arch=80))) == set(NAMES)


@pytest.mark.parametrize("library", NAMES)
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import none_of_that", "ModuleNotFoundError: No module named 'none_of_that'"),
        (
            "raise OSError('libcudart.so.12: cannot open\\nor so')",
            "OSError: libcudart.so.12: cannot",
        ),
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
    ],
)
def test_a_broken_library_is_refused_and_takes_nothing_down(
    library: str, source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if MODULES[library].LIBRARY.there:
        pytest.skip("it is really there")
    (tmp_path / f"{library}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    refused = found("rms_norm")[library].refused
    assert refused is not None
    assert refused.startswith(f"it cannot be imported: {said}")
    assert "\n" not in refused
    line = next(c for c in chosen("rms_norm").candidates if c.backend == "cuda")
    assert line.reason == f"{library}: {refused}"


def test_another_version_of_sgl_kernel_is_refused() -> None:
    if sgl_kernel.LIBRARY.there:
        pytest.skip("it is really there")
    other = {
        "rmsnorm": ("(Tensor! output, Tensor input, Tensor weight, float eps) -> ()", print),
        "silu_and_mul": ("(Tensor! out, Tensor input, int cuda_stream) -> ()", print),
    }
    made = declare(other)
    try:
        assert "rmsnorm takes ('output'" in str(found("rms_norm")["sgl_kernel"].refused)
        assert "'cuda_stream')" in str(found("silu_and_mul")["sgl_kernel"].refused)
        assert found("moe_sum")["sgl_kernel"].refused == "this version has no moe_sum_reduce"
    finally:
        made._destroy()


def test_flashinfer_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, each in stand_in().items():
        if name != "flashinfer_jit_cache":
            monkeypatch.setitem(sys.modules, name, each)
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        pytest.skip("it is really there")
    from torch.utils import cpp_extension

    for home in None, str(tmp_path):
        libraries._imported.cache_clear()
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        assert "it needs nvcc" in str(found("rms_norm")["flashinfer"].refused)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    libraries._imported.cache_clear()
    assert found("rms_norm")["flashinfer"].refused is None


ROPE = (shaped(3, dtype=torch.int64), shaped(3, 4, 128), shaped(3, 2, 128))
TABLE = shaped(9, 128, dtype=F32)


def turned(
    cache: Tensor = TABLE, query: Any = ROPE[1], key: Any = ROPE[2], **options: Any
) -> str | None:
    return flashinfer.rotary_embedding_supports(ROPE[0], query, key, cache, **options)


REFUSED: dict[str, Callable[[], str | None]] = {
    "norms are of float16": lambda: norms(shaped(3, 8, dtype=F32), shaped(8, dtype=F32)),
    "weight of the dtype of x": lambda: norms(shaped(3, 8), shaped(8, dtype=F32)),
    "a weight of": lambda: norms(shaped(3, 8), None),
    "counts elements in 32 bits": lambda: norms(shaped(2**20, 2**12), shaped(2**12)),
    "residual of the dtype": lambda: sums(shaped(3, 8, dtype=F32)),
    "row in shared memory": lambda: sums(shaped(3, 2**15 + 8)),
    "activations are called in": lambda: gates(shaped(3, 16, dtype=F32)),
    "halves of a multiple of 8": lambda: gates(shaped(3, 24)),
    "columns beyond a multiple of 16": lambda: sgl_kernel.moe_sum_supports(shaped(3, 2, 24)),
    "no more than 262140 tokens": lambda: sgl_kernel.moe_sum_supports(shaped(262141, 2, 16)),
    "sums are called in": lambda: sgl_kernel.moe_sum_supports(shaped(3, 2, 16, dtype=F32)),
    "query and key": lambda: turned(key=None),
    "and no offsets": lambda: turned(offsets=ROPE[0]),
    "heads of one dtype": lambda: turned(key=shaped(3, 2, 128, dtype=F16)),
    "heads of 64, 128": lambda: turned(query=shaped(3, 4, 96), key=shaped(3, 2, 96)),
    "256, 512 columns": lambda: turned(key=shaped(3, 2, 64)),
    "cache of float32": lambda: turned(shaped(9, 128)),
    "that is contiguous": lambda: turned(shaped(9, 256, dtype=F32)[:, :128]),
    "pairs of neighbours": lambda: turned(is_neox=False),
    "multiple of 32 columns": lambda: turned(shaped(9, 48, dtype=F32)),
    "below 2**31": lambda: turned(shaped(2**24, 128, dtype=F32)),
}


def norms(x: Tensor, weight: Tensor | None) -> str | None:
    from hal_cuda.rows import norm_supports

    return norm_supports(x, weight)


def sums(residual: Tensor) -> str | None:
    from hal_cuda.rows import add_norm_supports

    x = shaped(*residual.shape)
    return add_norm_supports(x, residual, shaped(x.shape[-1]))


def gates(x: Tensor) -> str | None:
    from hal_cuda.rows import gate_supports

    return gate_supports(x)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(reason: str) -> None:
    assert reason in str(REFUSED[reason]())
    assert turned() is None


def test_figures_name_what_is_there() -> None:
    attention = {(name, "varlen_attention") for name in ("flash", "fa3")}
    ours = {(name, op) for name, op in RIGHT} | attention
    assert set(MEASURED[90]) <= ours
    assert all(each.since is None or each.least < 1 for each in MEASURED[90].values())


THEIRS = {
    # Who registers it, with the arguments that the others do not have, or have without a default.
    "flash_attn_3": (
        "float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
        "int window_size_right=-1, int attention_chunk=0, float softcap=0.0, "
        "bool is_rotary_interleaved=False, Tensor? scheduler_metadata=None, int num_splits=0, "
        "bool? pack_gqa=None, int sm_margin=0) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "_vllm_fa3_C": (
        "float softmax_scale, bool is_causal, int window_size_left, int window_size_right, "
        "float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, "
        "bool? pack_gqa, int sm_margin, Tensor? s_aux, int cp_world_size, int cp_rank, "
        "Tensor? cp_tot_seqused_k) -> Tensor[]"
    ),
}
_FA3 = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor? out, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, "
    "Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, "
    "Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos, Tensor? rotary_sin, "
    "Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, Tensor? v_descale, "
)


class Seen(TorchDispatchMode):
    """The operators that a mode is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("namespace", THEIRS)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_fa3_is_called_by_whomever_it_was_built(namespace: str, scale: float | None) -> None:
    pytest.importorskip("triton")
    if fa3._operator() is not None:
        pytest.skip("it is really there")
    assert "fa3" not in {k.name for k in hal_cuda.varlen_attention(HOPPER)}
    schema, said = _FA3 + THEIRS[namespace], {}

    def forward(*given: Any) -> Any:
        arguments = fa3._operator().default._schema.arguments
        # Last ones that have their default are not passed on.
        said.update({each.name: each.default_value for each in arguments})
        said.update(zip((each.name for each in arguments), given, strict=False))
        parts = given[0] + 1, given[0][..., 0].T, given[0], given[0]
        return parts if namespace == "flash_attn_3" else list(parts[:2])

    made = torch.library.Library(namespace, "FRAGMENT")
    try:
        made.define(schema)
        made.impl("fwd", forward, "CompositeExplicitAutograd")
        q, k = torch.ones(5, 4, 16), torch.ones(7, 2, 16)
        starts = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0, 7], dtype=torch.int32)
        with Seen() as seen:
            out, sums = fa3.by_fa3(q, k, 2 * k, *starts, (5, 7), True, scale)
        kernel = next(k for k in hal_cuda.varlen_attention(HOPPER) if k.name == "fa3")
        (paged,) = (k for k in hal_cuda.paged_attention(HOPPER) if k.name == "fa3")
        assert paged.refused == fa3._WRONG["paged_attention"]
        assert "fa3" not in {
            k.name for k in hal_cuda.varlen_attention(hal.Device("cuda", 0, arch=80))
        }
    finally:
        made._destroy()
    assert torch.equal(out, q + 1)
    assert (sums.shape, kernel.refused) == ((4, 5), None)
    assert not any("fwd" in name for name in seen.names)
    assert "it is chosen from 8388608 elements on" in kernel.on_request(q)
    assert kernel.on_request(q.new_empty((2**20, 8, 1), device="meta")) is None
    asked = {name: value for name, value in said.items() if value is not None}
    assert torch.equal(asked.pop("v"), 2 * k)
    assert [torch.equal(asked.pop(name), want) for name, want in (("q", q), ("k", k))] == [True] * 2
    assert asked.pop("cu_seqlens_q").tolist() == [0, 5]
    assert asked.pop("cu_seqlens_k").tolist() == [0, 7]
    ours = {"max_seqlen_q": 5, "max_seqlen_k": 7, "is_causal": True, "num_splits": 1}
    none = {"window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "sm_margin": 0}
    more = (
        {"attention_chunk": 0}
        if namespace == "flash_attn_3"
        else {"cp_world_size": 1, "cp_rank": 0}
    )
    more |= {"is_rotary_interleaved": False, "softmax_scale": 0.25 if scale is None else scale}
    assert asked == ours | none | more


@on_device
@pytest.mark.parametrize(("library", "op"), RIGHT)
def test_a_library_is_right(library: str, op: str) -> None:
    if not MODULES[library].LIBRARY.there:
        pytest.skip(f"there is no {library}")
    device = hal.device("cuda")
    offer = next(
        o for o in offers(OPS[op], device) if o.spec == f"cuda:{library}" or _of(o, library)
    )
    assert offer.kernel is not None, offer.reason
    assert agrees(Subject("cuda", OPS[op], offer.kernel, device, RECORDS[op])) > 3


def _of(offer: Offer, library: str) -> bool:
    return offer.backend == "cuda" and str(offer.reason).startswith(f"{library}: ")


@on_device
def test_sgl_kernel_serves_many_rows() -> None:
    if not sgl_kernel.LIBRARY.there or hal.device("cuda").arch != 90:
        pytest.skip("there is no sgl_kernel, or not the device it was measured on")
    x = torch.randn(8192, 28672, device="cuda").to(BF16)
    with hal.trace() as records:
        got = hal.ops.silu_and_mul(x)
    assert records[0].kernel == "sgl_kernel"
    with hal.use("triton"):
        want = hal.ops.silu_and_mul(x)
    # Two roundings of bfloat16.
    assert float((got.float() - want.float()).norm() / want.float().norm()) < 2.5e-3


@on_device
@pytest.mark.parametrize(("library", "op"), [each for each in RIGHT if "gelu" in each[1]])
def test_a_tail_of_gelu_has_its_digits(library: str, op: str) -> None:
    if not MODULES[library].LIBRARY.there:
        pytest.skip(f"there is no {library}")
    gates = torch.linspace(-4, -2, 64, device="cuda").to(BF16)
    x = torch.stack((gates, torch.ones_like(gates))).view(1, -1)
    with hal.use(f"cuda:{library}"):
        got = getattr(hal.ops, op)(x).double()
    want = _GATES[op](gates.double())
    # Rounding takes 2**-9 of each; a tanh of 11 bits, all of some.
    assert float(((got - want) / want).abs().max()) < 2**-7
