"""Triton's kernels as machine code for sm_90, for the calls that the benchmark times."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from cases import FAMILIES
from hal_triton import configurations
from hal_triton.configurations import Config
from sm90 import Launch, adapter_of, compiled, launches, like_an_h100

META = torch.device("meta")
TABLES = json.loads((configurations.TABLES / "cuda-90.json").read_text(encoding="utf-8"))["tables"]

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
    with (
        like_an_h100(),
        mock.patch.object(configurations, "_table", mock.Mock(return_value=TABLES)),
    ):
        yield


def of_family(family: str) -> list[Launch]:
    """What is launched for the cases of a family, each once."""
    found: list[Launch] = []
    for case in FAMILIES[family]():
        adapter = adapter_of(case.op)
        if adapter is not None:
            args, kwargs = case.make(META)
            found += launches(functools.partial(adapter, *args, **kwargs))
    return list(dict.fromkeys(found))


def test_every_entry_of_the_tables_is_one_of_a_case() -> None:
    asked: set[tuple[str, str]] = set()
    find = configurations.find

    def noted(name: str, device: torch.device, sizes: str, otherwise: Config) -> Config:
        asked.add((name, sizes))
        return find(name, device, sizes, otherwise)

    with mock.patch.object(configurations, "find", noted):
        for family in FAMILIES:
            of_family(family)
    assert asked >= {(name, sizes) for name, table in TABLES.items() for sizes in table}


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


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_four_tokens_that_a_thread_draws_from_share_a_call() -> None:
    from hal_triton.kernels.sampling import collect

    pointers = "i32", "fp32", "i32", "i32", "i32", "i32", "i32", "i32"
    # Of 256 threads each has four columns of a piece, of which there are four in a part.
    constants = False, False, True, False, 64, 4096, 1024, 16
    given = pointers, constants, (("num_warps", 8), ("num_stages", 3))
    code = compiled(Launch(collect, "collect", *given))
    # A call for each piece and one in a loop over them, of twenty multiplications each.
    assert code.count(r"IMAD\.(WIDE|HI)\.U32") < 6 * 20
    # Those of the reductions; words that move to where probabilities are would take one a call.
    assert code.count("STS") <= 8
    assert code.wide == 5
