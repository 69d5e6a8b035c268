"""Triton's kernels as machine code for sm_90, for the calls that the benchmark times."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

import hal_triton
from cases import FAMILIES
from hal_triton import attention, attention_split, configurations, experts, product
from sm90 import Launch, compiled, launches

META = torch.device("meta")
TABLES = json.loads((configurations.TABLES / "cuda-90.json").read_text(encoding="utf-8"))["tables"]
MODULES = {op: module for module, ops in hal_triton._FAMILIES.items() for op in ops}

# Outside of the loops over keys; most of them only with Triton 3.9.
SPILLED = {"attend": 16, "attend_parts": 256, "merge_parts": 16}
# What streams rows of 16 bits or 8 does it with accesses of 16 bytes.
STREAMS = {
    "norm": {"rms_norm", "layer_norm"},
    "quant": {"quantise"},
    "fused quant": {"quantise"},
    "decode": {"attend_parts"},
    "prefill": {"attend"},
    "gemv": {"multiply", "multiply_pairs"},
    "experts": {"multiply_blocks", "add_choices"},
}


@pytest.fixture(autouse=True)
def _like_an_h100() -> Iterator[None]:
    room = mock.Mock(return_value=227 << 10)
    with (
        mock.patch.object(configurations, "_table", mock.Mock(return_value=TABLES)),
        mock.patch.object(attention, "shared_memory", room),
        mock.patch.object(attention_split, "shared_memory", room),
        mock.patch.object(product, "shared_memory", room),
        mock.patch.object(experts, "shared_memory", room),
        mock.patch.object(product, "processors", mock.Mock(return_value=132)),
        mock.patch.object(attention_split, "processors", mock.Mock(return_value=132)),
        mock.patch.object(product, "has_fp8", mock.Mock(return_value=True)),
    ):
        yield


def of_family(family: str) -> list[Launch]:
    """What is launched for the cases of a family, each once."""
    found: list[Launch] = []
    for case in FAMILIES[family]():
        module = MODULES.get(case.op) or MODULES.get(case.op.rstrip("_"))
        if module is not None:
            adapter = getattr(importlib.import_module(f"hal_triton.{module}"), case.op)
            args, kwargs = case.make(META)
            found += launches(lambda: adapter(*args, **kwargs))  # noqa: B023  # Called at once.
    return list(dict.fromkeys(found))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("family", FAMILIES)
def test_registers_are_not_spilled_and_accesses_are_wide(family: str) -> None:
    found = of_family(family)
    assert found
    for launch in found:
        code = compiled(launch)
        assert code.spilled <= SPILLED.get(launch.name, 0), launch
        if launch.name in STREAMS.get(family, ()):
            assert code.wide > 0, launch


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_a_spill_and_narrow_accesses_are_seen() -> None:
    from hal_triton.kernels.norm import rms_norm

    given = rms_norm, "rms_norm", ("bf16", "bf16", "bf16", None, None)
    narrow = compiled(Launch(*given, (0, 1, 2048, 1), (("num_warps", 8), ("num_stages", 3))))
    assert narrow.wide == 0
    crowded = compiled(Launch(*given, (0, 1, 8192, 16), (("num_warps", 1), ("num_stages", 3))))
    assert crowded.spilled > 0
