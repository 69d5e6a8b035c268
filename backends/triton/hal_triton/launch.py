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
_runtime: Any = getattr(knobs, "runtime", None)
_quiet: Any = getattr(_runtime, "launch_enter_hook", None)

_LANES = 32
_NUMBERS = ("tl.int32", "tl.int64", "tl.float32")

# Past this many specialisations a kernel's table is made anew.
_MAX_SPECIAL = 1024


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below ``n``, at least 1."""
    return 1 << max(n - 1, 0).bit_length()


# One call of Python's for a launch: tensors to pointers, what has to be as it was compiled for, and
# the compiled kernel's own function.
_TEMPLATE = """
def make(special, grid, numbers, slow, runtime, quiet):
    x, y, z = grid
    def launch({tensors}):
        nonlocal special
        {pointers}
        if (
            ({together}) & 15
            or special.device != special.current()
            or runtime.launch_enter_hook is not quiet
            or quiet.calls
        ):
            special = slow(special, ({tensors}))
        else:
            special.launch(
                x, y, z, special.stream(special.device), *special.before,
                {given}, *numbers, *special.after,
            )
    return launch
"""


@functools.cache
def _maker(count: int) -> Callable[..., Callable[..., None]]:
    """What makes functions that launch a kernel of so many tensors."""
    names = range(count)
    source = _TEMPLATE.format(
        tensors="".join(f"t{i}, " for i in names),
        pointers="; ".join(f"p{i} = None if t{i} is None else t{i}.data_ptr()" for i in names),
        together=" | ".join(f"(p{i} or 0)" for i in names),
        given=", ".join(f"p{i}" for i in names),
    )
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, f"<launch of {count} tensors>", "exec"), namespace)
    return namespace["make"]


class Launcher:
    """A Triton kernel whose parameters are pointers, then numbers, then constants.

    Triton specialises a kernel for the dtypes of its tensors, whether they are aligned to 16 bytes,
    which are None, and its constants; numbers have a type of their own and are not looked at. Once
    it is compiled for all that, it is launched without the time in which Triton finds out the same.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        kinds = {name: str(parameter.annotation) for name, parameter in parameters.items()}
        self.takes_pdl = "PDL" in parameters
        numbers = [name for name, kind in kinds.items() if kind in _NUMBERS]
        self._make = _maker(sum(not kind.startswith("tl.") for kind in kinds.values()))
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
        self.bind(grid, numbers, constants, num_warps, num_stages)(*tensors)

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

        def slow(special: Special, tensors: tuple[Tensor | None, ...]) -> Special:
            if special is _NONE:
                special = self._for(tensors, constants, num_warps, num_stages)
            special(grid, tensors, numbers)
            return special

        if 0 in grid:
            return _nothing_to_run
        return self._make(_NONE, grid, numbers, slow, _runtime, _quiet)

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
            options = {"num_warps": num_warps, "num_stages": num_stages}
            special = self._special[key] = Special(self, constants, options)
        return special


class Special:
    """A kernel for some constants, and for the device and the dtypes of its first call.

    Attributes:
        device: The number of the device; none is current that has -1, until there is what launches.
        current: Tells the number of the current device.
        stream: Tells the current stream of a device.
        launch: Launches, given the grid, the stream, what is ``before`` the arguments, the
            arguments that differ from call to call, and those ``after`` them.
    """

    def __init__(
        self, launcher: Launcher | None, constants: Sequence[Any], options: dict[str, int]
    ) -> None:
        self.launcher, self.constants, self.options = launcher, constants, options
        self.device: int | None = -1
        self.current: Callable[[], int] = _no_device
        self.stream: Any = None
        self.launch: Any = None
        self.before: tuple[Any, ...] = ()
        self.after: tuple[Any, ...] = ()

    def __call__(
        self, grid: tuple[int, int, int], tensors: Sequence[Tensor | None], numbers: Sequence[float]
    ) -> None:
        """Run it once; directly, if it is compiled and that is possible."""
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        # It is kept as it was compiled for tensors that are all aligned.
        aligned = not any(pointer and pointer % 16 for pointer in pointers)
        if aligned and self.device == self.current() and not _watched():
            stream = self.stream(self.device)
            self.launch(*grid, stream, *self.before, *pointers, *numbers, *self.after)
        else:
            self._slow(grid, tensors, numbers, aligned)

    def _slow(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor | None],
        numbers: Sequence[float],
        keep: bool,
    ) -> None:
        """Run it the way that Triton documents."""
        launcher = self.launcher
        assert launcher is not None
        device = next(tensor.device for tensor in tensors if tensor is not None)
        pdl = (has_pdl(device),) if launcher.takes_pdl else ()
        wide = {"num_warps": max(1, self.options["num_warps"] * _LANES // lanes(device))}
        options = self.options | wide | ({"launch_pdl": True} if True in pdl else {})
        after = *self.constants, *pdl
        with _on(device):
            compiled = launcher.kernel[grid](*tensors, *numbers, *after, **options)
        if keep and _DIRECTLY and not INTERPRETED:
            self.launch, self.before = _direct(compiled)
            self.current, self.stream = _current_of(device), driver.active.get_current_stream
            self.device, self.after = device.index, after


def _no_device() -> int:
    return -2


_NONE = Special(None, (), {})
"""What is not looked for yet."""


def _nothing_to_run(*_tensors: Tensor | None) -> None:
    pass


def _current_of(device: torch.device) -> Callable[[], int]:
    # What torch's own module asks, after it has looked whether the device is initialised.
    return getattr(torch._C, f"_{device.type}_getDevice", driver.active.get_current_device)  # pyright: ignore[reportPrivateUsage]


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
    enter = _runtime.launch_enter_hook
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
