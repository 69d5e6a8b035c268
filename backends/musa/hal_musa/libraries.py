"""What there is of torch_musa, MATE and sgl_kernel, and what they need."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch

import hal
from hal import Capability, Device, Kernel

__all__ = ["HALVES", "Offer", "aligned", "fits", "has_kernel", "never", "on", "portable", "vendor"]

Supports = Callable[..., str | None]

HALVES = (torch.bfloat16, torch.float16)


def has_kernel(operator: str) -> bool:
    """Whether the dispatcher has a kernel for the device; one that falls back does not count.

    That an operator is declared says nothing: torch_musa declares its own for every device.
    """
    known: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    if not known._dispatch_has_kernel(operator):
        return False
    return known._dispatch_has_kernel_for_dispatch_key(operator, "PrivateUse1")


def vendor(path: str) -> Callable[..., Any] | None:
    """A function of a library, such as ``mate.gemm.bmm_fp8``; None if it is not there.

    It is the function that counts: other distributions are called ``mate`` as well.
    """
    place, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(place)
    except ImportError:
        return None
    return getattr(found, name, None)


def _there(need: str) -> bool:
    """Whether an operator (``aten::silu``) or a function (``mate.hash_topk``) can be called."""
    return has_kernel(need) if "::" in need else vendor(need) is not None


def _installed(need: str) -> bool:
    """Whether there is the package of a function, or a kernel of an operator of torch's."""
    if "::" in need:
        return not need.startswith("aten::") or has_kernel(need)
    return importlib.util.find_spec(need.partition(".")[0]) is not None


@attrs.frozen
class Offer:
    """A kernel of a vendor's, and what it stands on.

    Args:
        kernel: What is offered where all of that is there.
        needs: Functions, then operators, which importing a function may register.
        since: The first architecture that it is for; before, it is refused, with that reason.
        before: An architecture, and the condition of all before it, which have less. A condition
            cannot ask for the device, since it is also asked about tensors without one.
    """

    kernel: Kernel
    needs: tuple[str, ...] = ()
    since: int = 21
    before: tuple[int, Supports] | None = None

    def on(self, device: Device) -> Kernel | None:
        """The kernel as it is offered on a device; None where its library is not there."""
        arch = device.arch or 0
        if arch >= self.since:
            return self._for(arch) if all(map(_there, self.needs)) else None
        # MATE cannot be asked for a function on what it is not for.
        if not all(map(_installed, self.needs)):
            return None
        reason = f"{self.kernel.name} has it from mp_{self.since} on, and this is mp_{arch}"
        return attrs.evolve(self.kernel, refused=reason)

    def _for(self, arch: int) -> Kernel:
        if self.before is None or arch >= self.before[0]:
            return self.kernel
        return attrs.evolve(self.kernel, supports=self.before[1])


def never(op: Callable[..., Any], name: str, reason: str, *needs: str) -> Offer:
    """What a library has for an op and is not called, with the reason, for ``hal.explain``.

    Args:
        op: Any function of the op's signature; it is not called either.
        name: The library.
        reason: Why not.
        needs: As in ``Offer``: without the library there is nothing to explain.
    """
    return Offer(Kernel(fn=op, name=name, refused=reason), needs)


def portable(family: str, op: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What a portable kernel does for calls like this one: Triton's, or where it cannot, torch's.

    For calls that a kernel of a library could take, but not well.
    """
    like = next(each for each in args if isinstance(each, torch.Tensor))
    module = importlib.import_module(f"hal_native.{family}")
    if Capability.TRITON in hal.device(like).capabilities:
        triton = importlib.import_module(f"hal_triton.{family}")
        served = importlib.import_module("hal_triton.target").served
        supports = getattr(triton, f"{op}_supports", served)
        module = triton if supports(*args, **kwargs) is None else module
    found = getattr(module, op)
    return found.prepare(*args, **kwargs) if isinstance(found, hal.prepared) else found


def fits(x: torch.Tensor, unit: int = 16) -> bool:
    """Whether the last dimension is contiguous, and all else begins at multiples of bytes."""
    *strides, last = x.stride()
    return last == 1 and not any(stride * x.itemsize % unit for stride in strides)


def aligned(x: torch.Tensor, unit: int = 16) -> torch.Tensor:
    """A contiguous tensor that begins at a multiple of so many bytes; a copy if need be."""
    x = x.contiguous()
    return x if x.data_ptr() % unit == 0 else x.clone()


def on(offers: Iterable[Offer], device: Device) -> list[Kernel]:
    """Those of them that are there, best first."""
    return [kernel for each in offers if (kernel := each.on(device)) is not None]
