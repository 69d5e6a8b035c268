"""What is particular to Moore Threads' devices: facts, capabilities, and their libraries' kernels.

Nothing here has run on such a device: it was tried on a simulated one, which tells what is called
with what, and not how fast or how precise it is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hal import Backend, Capability, Device, Kernel, Repair, hookimpl

if TYPE_CHECKING:
    from hal.testing.simulated import Face

backend = Backend(api=1, torch=">=2.7", devices=("musa",))

_GRAPHS = 2000
"""How many captured graphs a process may have: torchada's README says about 2,048, of which some
2,043 were had on an S5000 with driver 3.3.5; the next one fails with an illegal memory access."""


@hookimpl
def hal_devices() -> list[Device] | str:
    """The devices that torch_musa sees; asked of a child process before MUSA is used in this one.

    ``torch.cuda`` and ``is_cuda`` are not asked: under a shim for CUDA's names they mean MUSA too.
    """
    import torch

    if getattr(torch.version, "musa", None) is None:
        return "this torch is built without MUSA, or torch_musa is not imported"
    if not torch.get_device_module("musa").is_available():
        return "torch_musa finds no device of Moore Threads'"
    from hal_musa.probe import facts

    return [
        Device("musa", index, vendor="Moore Threads", max_graphs=_GRAPHS, **known)
        for index, known in enumerate(facts())
    ]


@hookimpl
def hal_repairs() -> list[Repair]:
    """What torchada breaks by replacing ``torch.device``, which its 0.1.103 mends by itself.

    The fakes that torch_musa's operators lack are made here too: it is called as hal is loaded.
    """
    from hal.repairs import DEVICE_CONSTANTS

    importlib.import_module("hal_musa.fakes")
    return [DEVICE_CONSTANTS]


@hookimpl
def hal_simulated(card: str | None) -> Face | None:
    """What torch_musa, on this card, looks like."""
    from hal_musa.simulated import face

    return face(card)


@hookimpl
def hal_capabilities(device: Device) -> set[Capability]:
    """By architecture: 21 emulates bfloat16, 31 is the first with 8-bit floats; none has PDL."""
    claimed = {Capability.GRAPH_CAPTURE, Capability.COMPILE}
    since = {Capability.BF16: 22, Capability.FP8: 31}
    return claimed | {each for each, arch in since.items() if (device.arch or 0) >= arch}


_FAMILIES = {
    "activation": ("silu_and_mul", "mul_add"),
    "norm": ("rms_norm",),
    "rotary": ("rotary_embedding",),
    "quant": ("per_token_group_quant", "per_token_quant"),
    "matmul": ("scaled_mm", "block_scaled_mm"),
    "gemv": ("fused_gemv", "fused_moe_gemv"),
    "experts": ("fused_experts",),
    "moe": ("topk_softmax", "topk_sigmoid", "grouped_topk"),
    "attention": ("varlen_attention", "paged_attention"),
    "mla": ("mla_decode",),
}


def _offer(op: str, family: str) -> object:
    def hook(device: Device) -> list[Kernel]:
        from hal_musa.libraries import on

        return on(importlib.import_module(f"hal_musa.{family}").OFFERS[op], device)

    return hookimpl(hook)


for _family, _ops in _FAMILIES.items():
    globals().update({op: _offer(op, _family) for op in _ops})
