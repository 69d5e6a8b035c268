"""torch_musa's operators on a simulated card: schemas, dtypes, gradients, fakes, refusals."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hal import fakes
from hal.testing.simulated import strict

ATEN = torch.ops.aten
MAJOR, MINOR = torch.musa.get_device_capability()
ARCH = 10 * MAJOR + MINOR
OLD = pytest.mark.skipif(ARCH >= 22, reason="MP22 and later have bfloat16")
NEW = pytest.mark.skipif(ARCH < 22, reason="MP21 has no bfloat16 and no fused attention")

# native_functions.yaml of torch_musa 2.7.1's patch, as torch prints it.
DECLARED = """
gated_silu(Tensor input) -> Tensor
swish_glu(Tensor input) -> Tensor
_fused_swiglu_forward(Tensor input) -> Tensor
_fused_swiglu_backward(Tensor grad, Tensor input) -> Tensor
_fused_rmsnorm_forward(Tensor input, SymInt[] normalized_shape, float eps, Tensor? weight=None) -> (Tensor output, Tensor invvar)
_fused_rmsnorm_backward(Tensor grad_out, Tensor invvar, Tensor input, SymInt[] normalized_shape, float eps, Tensor? weight=None) -> (Tensor grad_input, Tensor grad_weight)
rope(Tensor input, Tensor freq_cis, bool rotary_interleaved, bool batch_first, bool multi_latent_attention=False) -> Tensor
_fused_rope_forward(Tensor input, Tensor freq_cis, bool rotary_interleaved, bool batch_first, bool multi_latent_attention=False) -> Tensor
_fused_rope_backward(Tensor grad, Tensor freq_cis, bool rotary_interleaved, bool batch_first, bool multi_latent_attention=False) -> Tensor
_scaled_dot_product_attention_math_musa(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0., bool is_causal=False, *, float? scale=None) -> (Tensor output, Tensor attn_weights, Tensor dropout_mask)
_scaled_dot_product_attention_math_musa_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor output, Tensor attn_weights, Tensor dropout_mask, bool is_causal, Tensor? attn_mask=None, *, float? scale=None) -> (Tensor, Tensor, Tensor, Tensor)
_scaled_dot_product_attention_flash_musa(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0., bool is_causal=False, *, float? scale=None) -> (Tensor output, Tensor logsumexp, Tensor dropout_mask)
_scaled_dot_product_attention_flash_musa_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor output, Tensor logsumexp, Tensor dropout_mask, bool is_causal, Tensor? attn_mask=None, *, float? scale=None) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_attn_mask)
cross_entropy_loss_2d_choice(Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, int ignore_index=-100, float label_smoothing=0.) -> int
_fused_cross_entropy_loss_2d_forward(Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, int ignore_index=-100, float label_smoothing=0.) -> Tensor
_fused_cross_entropy_loss_2d_backward(Tensor grad, Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, int ignore_index=-100, float label_smoothing=0.) -> Tensor
""".strip().splitlines()  # noqa: E501
FUSED = [line.partition("(")[0] for line in DECLARED]


@pytest.mark.parametrize("declared", DECLARED, ids=FUSED)
def test_schemas(declared: str) -> None:
    wanted = torch._C.parse_schema(f"aten::{declared}")
    assert str(getattr(ATEN, wanted.name.removeprefix("aten::")).default._schema) == str(wanted)


@pytest.mark.parametrize("name", [name for name in FUSED if name not in ("swish_glu", "rope")])
def test_the_dispatcher_knows_kernels_of_the_device_and_throwing_ones_of_the_host(
    name: str,
) -> None:
    for key in ("PrivateUse1", "CPU"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)


def musa(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator).to(dtype).to("musa")
    return x.requires_grad_(grad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ATEN._fused_swiglu_forward(torch.ones(2, 4)),
        lambda: ATEN._fused_rmsnorm_forward(torch.ones(2, 4), [4], 1e-6),
        lambda: ATEN._fused_rope_forward(torch.ones(1, 1, 1, 4), torch.ones(1, 4), False, False),
        lambda: ATEN.gated_silu(torch.ones(2, 4)),
        lambda: torch.nn.SwishGLU()(torch.ones(2, 4)),
        lambda: F.rope(torch.ones(1, 1, 1, 4), torch.ones(1, 4)),
    ],
)
def test_tensors_of_the_host_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"only supported in torch_musa\.$"):
        call()


def reference_swiglu(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return F.silu(x[..., :half]) * x[..., half:]


@pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 3, 10), (0, 4)])
def test_swish_glu(shape: tuple[int, ...]) -> None:
    x = musa(*shape, dtype=torch.float16)
    for found in (torch.nn.SwishGLU()(x), F.swish_glu(x), torch.swish_glu(x)):
        assert found.device == x.device
        assert torch.equal(found.cpu(), reference_swiglu(x.cpu().float()).half())


def test_swish_glu_makes_contiguous_and_drops_an_odd_column() -> None:
    x = musa(6, 9).t()
    assert torch.equal(F.swish_glu(x).cpu(), reference_swiglu(x.cpu()))
    odd = musa(2, 7)
    assert torch.equal(F.swish_glu(odd).cpu(), reference_swiglu(odd.cpu()[:, :6]))


def test_swish_glu_of_other_dtypes() -> None:
    with pytest.raises(RuntimeError, match="has to be of float32, float16, bfloat16"):
        F.swish_glu(musa(2, 4, dtype=torch.float64))


@OLD
def test_old_cards_refuse_bfloat16() -> None:
    with pytest.raises(RuntimeError, match="needs MP22"):
        F.swish_glu(musa(2, 4, dtype=torch.bfloat16))


def test_gated_silu_is_older() -> None:
    x = musa(2, 8)
    assert torch.equal(torch.gated_silu(x).cpu(), reference_swiglu(x.cpu()))
    for bad in (musa(2, 8, dtype=torch.bfloat16), musa(8), musa(8, 2).t()):
        with pytest.raises(RuntimeError, match="gated_silu's input has to"):
            torch.gated_silu(bad)


def gradients(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().cpu().float().requires_grad_() for x in inputs]
    f(*leaves).square().sum().backward()
    return [x.grad for x in leaves if x.grad is not None]


def test_gradients_of_the_activation_and_the_norm() -> None:
    x, w = musa(3, 8, grad=True), musa(8, grad=True)
    F.swish_glu(x).square().sum().backward()
    assert torch.allclose(x.grad.cpu(), *gradients(reference_swiglu, x))
    x.grad = None
    F.rms_norm(x, (8,), w, 1e-6).square().sum().backward()
    wanted = gradients(lambda x, w: F.rms_norm(x, (8,), w, 1e-6), x, w)
    assert torch.allclose(x.grad.cpu(), wanted[0], atol=1e-6)
    assert torch.allclose(w.grad.cpu(), wanted[1], atol=1e-6)


def test_gated_silu_has_no_gradient() -> None:
    x = musa(2, 8, grad=True)
    y = torch.gated_silu(x)
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        y.sum().backward()
    assert x.grad is None


def test_the_norm() -> None:
    x, w = musa(2, 3, 8, dtype=torch.float16), musa(8, dtype=torch.float16)
    y, inverse = ATEN._fused_rmsnorm_forward(x, [8], 1e-6, w)
    assert (inverse.dtype, inverse.shape) == (torch.float32, (2, 3))
    wanted = F.rms_norm(x.cpu().float(), (8,), w.cpu().float(), 1e-6).half()
    assert torch.equal(y.cpu(), wanted)
    assert torch.equal(F.rms_norm(x, (8,), w, 1e-6).cpu(), wanted)
    assert ATEN._fused_rmsnorm_forward(x, [8], 1e-6)[0].shape == x.shape


def test_the_norm_wants_one_dtype_and_has_another_epsilon() -> None:
    x = musa(2, 8, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="must be the same"):
        F.rms_norm(x, (8,), musa(8), 1e-6)
    # torch's own is that of the dtype, some 1e-3, which would make this 1e-2 at most.
    tiny = torch.full((1, 8), 1e-5, device="musa", dtype=torch.float32)
    assert F.rms_norm(tiny, (8,)).cpu().allclose(torch.ones(1, 8))
    assert not F.rms_norm(tiny.cpu(), (8,)).allclose(torch.ones(1, 8))


def test_rope_takes_angles() -> None:
    x, angles = musa(5, 2, 3, 8, grad=True), musa(5, 4)
    y = F.rope(x, angles)
    cos, sin = angles.cpu().cos()[:, None, None], angles.cpu().sin()[:, None, None]
    first, second = x.detach().cpu()[..., :2], x.detach().cpu()[..., 2:4]
    half = torch.cat([-second, first], -1)
    turned = x.detach().cpu()[..., :4] * cos + half * sin
    assert torch.allclose(y.cpu(), torch.cat([turned, x.detach().cpu()[..., 4:]], -1))
    y.sum().backward()
    assert x.grad.shape == x.shape
    other = F.rope(x.transpose(0, 1), angles, batch_first=True)
    assert torch.equal(other.transpose(0, 1), y)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention(dtype: torch.dtype, causal: bool) -> None:
    q, k, v = musa(2, 4, 5, 16, dtype=dtype), musa(2, 2, 7, 16, dtype=dtype), musa(2, 2, 7, 8)
    v = v.to(dtype)
    found = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    wide = [x.cpu().float() for x in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*wide, is_causal=causal, enable_gqa=True)
    assert torch.allclose(
        found.cpu().float(), wanted, atol=1e-3 if dtype is torch.float16 else 1e-6
    )


def test_attention_of_fewer_dimensions_and_of_one_batch() -> None:
    q, k, mask = musa(3, 8), musa(4, 8), musa(3, 4)
    found = F.scaled_dot_product_attention(q, k, k, mask)
    wanted = F.scaled_dot_product_attention(*(x.cpu() for x in (q, k, k, mask)))
    assert torch.allclose(found.cpu(), wanted, atol=1e-6)
    keys = k.expand(1, 2, 4, 8)
    wide = F.scaled_dot_product_attention(musa(2, 2, 3, 8), keys, keys)
    alone = musa(2, 2, 3, 8).cpu(), k.cpu().expand(2, 2, 4, 8), k.cpu().expand(2, 2, 4, 8)
    assert torch.allclose(wide.cpu(), F.scaled_dot_product_attention(*alone), atol=1e-6)


def test_attention_has_gradients() -> None:
    inputs = [musa(1, 2, 3, 8, grad=True) for _ in range(3)]
    F.scaled_dot_product_attention(*inputs).square().sum().backward()
    wanted = gradients(F.scaled_dot_product_attention, *inputs)
    assert all(
        torch.allclose(x.grad.cpu(), w, atol=1e-6) for x, w in zip(inputs, wanted, strict=True)
    )


@NEW
def test_the_fused_attention_has_limits() -> None:
    def flash(qk: int, v: int, dtype: torch.dtype = torch.float16) -> Tensor:
        q, k = (musa(1, 1, 3, qk, dtype=dtype) for _ in range(2))
        return ATEN._scaled_dot_product_attention_flash_musa(q, k, musa(1, 1, 3, v, dtype=dtype))

    for dims in ((128, 128), (192, 128), (160, 160)):
        out, lse, _ = flash(*dims)
        assert (out.shape[-1], lse.shape, lse.dtype) == (dims[1], (1, 1, 3), torch.float32)
    for bad in ((129, 128), (192, 192), (256, 256)):
        with pytest.raises(RuntimeError, match="does not take these"):
            flash(*bad)
    with pytest.raises(RuntimeError, match="has to be of float16, bfloat16"):
        flash(64, 64, torch.float32)


def test_causal_attention_takes_no_mask() -> None:
    q = musa(1, 1, 3, 8)
    with pytest.raises(RuntimeError, match="without attn_mask"):
        F.scaled_dot_product_attention(q, q, q, torch.zeros(3, 3, device="musa"), is_causal=True)


def test_scaled_products_of_fp8() -> None:
    a, b = musa(4, 32).to(torch.float8_e4m3fn), musa(16, 32).to(torch.float8_e4m3fn).t()
    rows, columns = torch.rand(4, 1, device="musa"), torch.rand(1, 16, device="musa")
    if ARCH < 31:
        with pytest.raises(RuntimeError, match="needs MP31"):
            torch._scaled_mm(a, b, rows, columns, out_dtype=torch.bfloat16)
        return
    found = torch._scaled_mm(a, b, rows, columns, out_dtype=torch.bfloat16).cpu()
    wanted = (a.cpu().float() * rows.cpu()) @ (b.cpu().float() * columns.cpu())
    assert torch.allclose(found.float(), wanted, rtol=1e-2, atol=1e-2)


def test_the_loss_is_fused_from_30_on() -> None:
    logits, target = musa(4, 9, grad=True), torch.tensor([0, 8, -100, 3], device="musa")
    assert ATEN.cross_entropy_loss_2d_choice(logits, target) == int(ARCH >= 30)
    loss = ATEN._fused_cross_entropy_loss_2d_forward(logits, target)
    loss.backward()
    leaf = logits.detach().cpu().requires_grad_()
    F.cross_entropy(leaf, target.cpu()).backward()
    assert torch.allclose(logits.grad.cpu(), leaf.grad)


def compiled(f: Callable[[Tensor], Tensor], *, dynamic: bool) -> Tensor:
    torch._dynamo.reset()
    made = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    return made(musa(3, 8))


def test_only_the_norm_has_a_fake_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "_FAKES", {})  # What hal_musa adds.
    x = musa(3, 8)
    # The backend brings some.
    with mock.patch.dict(fakes._FAKES, clear=True):
        assert torch.equal(compiled(F.swish_glu, dynamic=False), F.swish_glu(x))
        with pytest.raises(Exception, match="does not support running with fake tensors"):
            compiled(F.swish_glu, dynamic=True)
    norm = compiled(lambda x: F.rms_norm(x, (8,), None, 1e-6), dynamic=True)
    assert torch.equal(norm, F.rms_norm(x, (8,), None, 1e-6))


def test_operators_fall_back_to_nothing() -> None:
    x, w = musa(3, 8, dtype=torch.float16), musa(8, dtype=torch.float16)
    with strict():
        F.swish_glu(x)
        F.rms_norm(x, (8,), w, 1e-6)
        F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])
        with pytest.raises(NotImplementedError):
            x + x


def test_operators_are_captured_as_one() -> None:
    x = musa(3, 8)
    captured = torch.musa.MUSAGraph()
    with torch.musa.graph(captured):
        y = F.swish_glu(x)
    x.mul_(2)
    captured.replay()
    assert torch.equal(y, F.swish_glu(x))
