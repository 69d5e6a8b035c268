"""Launching: a kernel that is compiled once for all arguments alike, and then called directly."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver as _driver
from triton.runtime.jit import JITFunction

import hal
from hal_triton.kernels.pdl import KNOWN

driver: Any = _driver
# Triton 3.3 has none, and nothing that is launched directly.
knobs: Any = getattr(triton, "knobs", None)

__all__ = ["INTERPRETED", "Launcher", "Special", "launcher", "next_power_of_2"]

# Those whose ``CompiledKernel.run`` takes the grid, the stream, the function, its packed metadata,
# launch metadata, two hooks, then every argument: read in their sources, and run with 3.6.
_DIRECT = ("3.6", "3.9")
_SERIES = triton.__version__.rpartition(".")[0]
_DIRECTLY = _SERIES in _DIRECT

_LANES = 32

# Past this many specialisations a kernel's table is made anew.
_MAX_SPECIAL = 1024


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below ``n``, at least 1."""
    return 1 << max(n - 1, 0).bit_length()


class Launcher:
    """A Triton kernel whose parameters are pointers, then numbers, then constants.

    Triton specialises a kernel for the dtypes of its tensors, whether they are aligned to 16 bytes,
    which are None, and its constants; numbers have a type of their own and are not looked at. Once
    it is compiled for all that, it is launched without the time in which Triton finds out the same.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        self.takes_pdl = "PDL" in parameters
        numbers = [
            name
            for name, parameter in parameters.items()
            if str(parameter.annotation) in ("tl.int32", "tl.int64", "tl.float32")
        ]
        self.kernel: Any = triton.jit(do_not_specialize=numbers)(function)  # pyright: ignore
        self._special: dict[tuple[Any, ...], Special] = {}
        functools.update_wrapper(self, function)

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor | None],
        numbers: Sequence[float],
        constants: Sequence[Any],
        num_warps: int = 4,
        num_stages: int = 3,
    ) -> None:
        """Run it once, as ``bind`` says."""
        self._for(tensors, constants, num_warps, num_stages)(grid, tensors, numbers)

    def bind(
        self,
        grid: tuple[int, int, int],
        numbers: Sequence[float],
        constants: Sequence[Any],
        num_warps: int = 4,
        num_stages: int = 3,
    ) -> Callable[..., None]:
        """A function that runs it for some tensors, on the stream of their device.

        Whoever keeps it gives it tensors of the same dtypes on the same device each time. Nothing
        is run on an empty grid.

        Args:
            grid: The number of programs along each axis, of which only the first may exceed 65535.
            numbers: Those that are annotated ``tl.int32``, ``tl.int64`` or ``tl.float32``.
            constants: Those that are annotated ``tl.constexpr``, but for a last one PDL: whether it
                starts while the kernel before it ends.
            num_warps: Warps of a program, of 32 threads; of fewer where a device's are wider.
            num_stages: How many loads of a loop are under way at once.
        """
        special: Special | None = None

        def launch(*tensors: Tensor | None) -> None:
            nonlocal special
            if special is None:
                special = self._for(tensors, constants, num_warps, num_stages)
            special(grid, tensors, numbers)

        return launch

    def _for(
        self,
        tensors: Sequence[Tensor | None],
        constants: Sequence[Any],
        num_warps: int,
        num_stages: int,
    ) -> Special:
        """What is kept for all plans that differ in numbers only."""
        device = next(tensor.device for tensor in tensors if tensor is not None)
        dtypes = [tensor if tensor is None else tensor.dtype for tensor in tensors]
        key = (device, num_warps, num_stages, *constants, *dtypes)
        special = self._special.get(key)
        if special is None:
            if len(self._special) >= _MAX_SPECIAL:
                self._special.clear()
            special = self._special[key] = Special(self, constants, num_warps, num_stages)
        return special


class Special:
    """A kernel for some constants, and for the device and the dtypes of its first call."""

    def __init__(
        self, launcher: Launcher, constants: Sequence[Any], num_warps: int, num_stages: int
    ) -> None:
        self._launcher, self._constants = launcher, constants
        self._options = {"num_warps": num_warps, "num_stages": num_stages}
        self._device: int | None = -1  # No device's, until there is what launches it.
        self._launch: Any = None
        self._before: tuple[Any, ...] = ()
        self._after: tuple[Any, ...] = ()

    def __call__(
        self, grid: tuple[int, int, int], tensors: Sequence[Tensor | None], numbers: Sequence[float]
    ) -> None:
        """Run it."""
        together = 0
        pointers: list[int | None] = []
        for tensor in tensors:
            if tensor is None:
                pointers.append(None)
            else:
                pointer = tensor.data_ptr()
                pointers.append(pointer)
                together |= pointer
        # It is kept as it was compiled for tensors that are all aligned.
        if together % 16 or self._device != _current_device() or _watched():
            if 0 not in grid:
                self._slow(grid, tensors, numbers, keep=not together % 16)
            return
        if 0 in grid:
            return
        stream = driver.active.get_current_stream(self._device)
        self._launch(*grid, stream, *self._before, *pointers, *numbers, *self._after)

    def _slow(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor | None],
        numbers: Sequence[float],
        keep: bool,
    ) -> None:
        """Run it the way that Triton documents."""
        device = next(tensor.device for tensor in tensors if tensor is not None)
        pdl = (has_pdl(device),) if self._launcher.takes_pdl else ()
        wide = {"num_warps": max(1, self._options["num_warps"] * _LANES // lanes(device))}
        options = self._options | wide | ({"launch_pdl": True} if True in pdl else {})
        after = *self._constants, *pdl
        with _on(device):
            compiled = self._launcher.kernel[grid](*tensors, *numbers, *after, **options)
        if keep and _DIRECTLY and not INTERPRETED:
            self._launch, self._before = _direct(compiled)
            self._device, self._after = device.index, after


def _current_device() -> int:
    # The interpreter has no driver to ask.
    return -2 if INTERPRETED else driver.active.get_current_device()


def _direct(compiled: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What launches a compiled kernel, and what it takes between the stream and the arguments."""
    run = compiled.run
    nothing = None, None, None  # Launch metadata and hooks.
    scratch = getattr(run, "global_scratch_size", 1) or getattr(run, "profile_scratch_size", 1)
    if _SERIES == "3.6" and type(run).__name__ == "CudaLauncher" and not scratch:
        how = run.launch_cooperative_grid, run.launch_pdl, None, None
        return run.launch, (compiled.function, *how, compiled.packed_metadata, *nothing)
    return run, (compiled.function, compiled.packed_metadata, *nothing)


@functools.cache
def lanes(device: torch.device) -> int:
    """Threads of a warp, of which configurations take there to be 32."""
    return hal.device(device).warp_size or _LANES


@functools.cache
def has_pdl(device: torch.device) -> bool:
    """Whether kernels on a device can start before those ahead of them have ended."""
    return KNOWN and not INTERPRETED and hal.supports(hal.Capability.PDL, device)


def launcher(function: Callable[..., Any]) -> Launcher:
    """Make a ``Launcher`` of a function in Triton's language."""
    return Launcher(function)


def _watched() -> bool:
    """Whether someone, such as a profiler, wants to hear of each launch."""
    enter = knobs.runtime.launch_enter_hook
    return enter is not None and bool(getattr(enter, "calls", True))


def _on(device: torch.device) -> Any:
    """A block in which kernels are launched on a device."""
    if INTERPRETED:
        # numpy warns of infinities and NaN, which no device does.
        return importlib.import_module("numpy").errstate(all="ignore")
    return torch.get_device_module(device.type).device(device.index)


@triton.jit
def _nothing() -> None:
    pass


INTERPRETED = not isinstance(_nothing, JITFunction)  # pyright: ignore
"""Whether kernels run in Triton's interpreter, as TRITON_INTERPRET asks before it is imported."""
