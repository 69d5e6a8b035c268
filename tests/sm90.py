"""What Triton's kernels become on sm_90, on a machine that has no such device."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import hal_triton
from hal_triton import attention, attention_split, experts, product
from hal_triton.kernels.pdl import KNOWN
from hal_triton.launch import Launcher, Special

TARGET = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
H100 = {"shared_memory": 227 << 10, "processors": 132, "has_fp8": True}
MODULES = {op: module for module, ops in hal_triton._FAMILIES.items() for op in ops}
NUMBERS = {"tl.int32": "i32", "tl.int64": "i64", "tl.float32": "fp32"}


@contextmanager
def like_an_h100() -> Generator[None]:
    """Have adapters plan for one, whatever the device of what they are given."""
    with ExitStack() as stack:
        for module in (attention, attention_split, experts, product):
            for name in vars(module).keys() & H100:
                answer = mock.Mock(return_value=H100[name])
                stack.enter_context(mock.patch.object(module, name, answer))
        yield


def adapter_of(op: str) -> Callable[..., Any] | None:
    """What serves an op, or changes its first argument; None if hal_triton does not."""
    module = MODULES.get(op) or MODULES.get(op.rstrip("_"))
    if module is None:
        return None
    return getattr(importlib.import_module(f"hal_triton.{module}"), op)


@attrs.frozen
class Launch:
    """A kernel with all that it is specialised for."""

    launcher: Launcher = attrs.field(eq=False)
    name: str
    pointers: tuple[str | None, ...]
    constants: tuple[Any, ...]
    options: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        named = " ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.name}({', '.join(map(str, self.pointers))}) {self.constants} {named}"


@attrs.frozen
class Code:
    """What the machine gets: registers of a thread, and instructions by their beginnings."""

    registers: int
    instructions: tuple[str, ...] = attrs.field(repr=False)

    def count(self, pattern: str) -> int:
        return sum(re.match(pattern, each) is not None for each in self.instructions)

    @property
    def spilled(self) -> int:
        """Accesses of local memory, which is where registers go that are too many."""
        return self.count(r"(STL|LDL)\b")

    @property
    def wide(self) -> int:
        """Accesses of memory, 16 bytes for each thread."""
        return self.count(r"(LDG|STG|LDGSTS)\.\S*128|UTMALDG|UBLKCP")


@contextmanager
def recorded() -> Generator[list[Launch]]:
    """Collect what would be launched."""
    found: list[Launch] = []

    def keep(self: Any, grid: object, tensors: Sequence[Tensor | None], numbers: object) -> None:
        pointers = tuple(None if t is None else TYPES[t.dtype] for t in tensors)
        launcher, options = self.launcher, tuple(self.options.items())
        name = launcher.kernel.fn.__name__
        found.append(Launch(launcher, name, pointers, tuple(self.constants), options))

    with mock.patch.object(Special, "__call__", keep):
        yield found


def launches(call: Callable[[], object]) -> list[Launch]:
    """What a call launches, each once."""
    with recorded() as found:
        call()
    return list(dict.fromkeys(found))


def compiled(launch: Launch) -> Code:
    """Compile it with pointers aligned to 16 bytes, and look at what came out."""
    function, options = launch.launcher.kernel, dict(launch.options)
    pdl = (KNOWN,) if launch.launcher.takes_pdl else ()
    source = _source(function, launch.pointers, (*launch.constants, *pdl))
    options |= {"launch_pdl": True} if True in pdl else {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(triton.compile(source, target=TARGET, options=options).asm["cubin"])
        file.flush()
        return _code(file.name)


def _source(function: Any, pointers: Sequence[str | None], constants: Sequence[Any]) -> ASTSource:
    signature, given, aligned = {}, {}, {}
    of_pointers, of_constants = iter(pointers), iter(constants)
    for i, (name, parameter) in enumerate(inspect.signature(function.fn).parameters.items()):
        annotation = str(parameter.annotation)
        if annotation in NUMBERS:
            signature[name] = NUMBERS[annotation]
            continue
        constant = annotation == "tl.constexpr"
        value = next(of_constants) if constant else next(of_pointers)
        if constant or value is None:
            signature[name], given[i,] = "constexpr", value
        else:
            signature[name], aligned[i,] = f"*{value}", [["tt.divisibility", 16]]
    return ASTSource(function, signature, constexprs=given, attrs=aligned)


def _code(path: str) -> Code:
    def said(option: str) -> str:
        return subprocess.run(
            [CUOBJDUMP, option, path], capture_output=True, text=True, check=True
        ).stdout

    registers = re.search(r"REG:(\d+)", said("-res-usage"))
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?\w+ )?(\S+)", said("-sass"), re.M)
    assert registers is not None
    return Code(int(registers[1]), tuple(lines))
