"""A program: what hal makes of a Moore Threads card that torchada passes off as NVIDIA's.

It prints that as JSON. torchada is imported before hal is asked, as an application does.
"""

from __future__ import annotations

import json
import sys
import warnings

from hal.testing.simulated import simulate

simulate("musa")

import torch  # noqa: E402
import torchada  # noqa: E402  # pyright: ignore

import hal  # noqa: E402
from hal_musa.simulated import add  # noqa: E402

add("mate", "sgl_kernel")
warnings.simplefilter("ignore")

x = torch.randn(3, 64, device="musa").bfloat16()
starts = torch.tensor([0, 3], device="musa", dtype=torch.int32)
heads = x.view(3, 1, 64)
given = heads, heads, heads, starts, starts, 3, 3


def close(op: str, *args: object) -> bool:
    function = getattr(hal.ops, op)
    host = [each.cpu() if isinstance(each, torch.Tensor) else each for each in args]
    found, wanted = function(*args), function(*host)
    found, wanted = (each[0] if isinstance(each, tuple) else each for each in (found, wanted))
    return torch.allclose(found.cpu().float(), wanted.float(), atol=1e-2)


sys.stdout.write(
    json.dumps(
        {
            "patched": torchada.is_patched(),
            "is_cuda": x.is_cuda,
            "counted": torch.cuda.device_count(),
            "devices": [[str(each), each.vendor, each.arch] for each in hal.devices()],
            "reason": next(b.reason for b in hal.backends() if b.name == "cuda"),
            "swiglu": str(hal.explain("silu_and_mul", x).chosen),
            "attention": str(hal.explain("varlen_attention", *given).chosen),
            "close": [close("silu_and_mul", x), close("varlen_attention", *given)],
            "of a name": hal.device("cuda:0").type,
        }
    )
)
