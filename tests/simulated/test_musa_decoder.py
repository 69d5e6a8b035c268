"""The decoder of ``examples`` on a Moore Threads card, and what serves it there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import decoder
import generate
import hal
from simulated.vendors import ARCH, host, vendors

TINY = Path(__file__).parents[2] / "examples" / "tiny-qwen3"
PROMPTS = [[5, 9, 17, 3, 3, 21], [7], [11, 2, 2, 8, 40, 1, 30, 31, 32, 33, 34]]
GREEDY = generate.Sampling(max_new_tokens=8, temperature=0.0)

pytestmark = pytest.mark.filterwarnings("ignore:the reference, which is slow")


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    with vendors("mate", "sgl_kernel"):
        yield


def loaded(device: str, dtype: torch.dtype) -> decoder.Decoder:
    return decoder.load(TINY, torch.device(device), dtype)


def continued(model: decoder.Decoder) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in PROMPTS]
    for token in (token for step in generate.generate(model, PROMPTS, GREEDY) for token in step):
        found[token.sequence].append(token.id)
    return found


def test_the_texts_are_those_of_the_host() -> None:
    assert continued(loaded("musa", torch.float32)) == continued(loaded("cpu", torch.float32))


@pytest.mark.skipif(ARCH < 22, reason="mp_21 has no bfloat16")
def test_its_layers_are_served_by_the_vendors_kernels() -> None:
    with hal.trace() as calls:
        continued(loaded("musa", torch.bfloat16))
    served = {call.op: f"{call.backend}:{call.kernel}" for call in calls}
    wanted = {"silu_and_mul": "musa:torch_musa", "rms_norm": "musa:torch_musa"}
    wanted |= {"paged_attention": "musa:mate"} if ARCH >= 31 else {}
    assert wanted.items() <= served.items()


@pytest.mark.skipif(ARCH < 31, reason="MATE is for mp_31")
def test_the_report_names_the_kernels_that_would_serve() -> None:
    said = str(hal.report("musa", ops=["silu_and_mul", "paged_attention", "mla_decode"]))
    assert all(kernel in said for kernel in ("musa:torch_musa", "musa:mate"))
    assert "musa:0 is simulated: nothing here is of hardware" in said


@pytest.mark.skipif(ARCH < 22, reason="mp_21 has no bfloat16")
def test_logits_are_close_to_those_of_the_host() -> None:
    logits = []
    for device in ("cpu", "musa"):
        model = loaded(device, torch.bfloat16)
        table = torch.arange(4, dtype=torch.int32).view(1, 4).to(device)
        batch = decoder.Batch.of([0], [len(PROMPTS[2])], table, 16)
        tokens = torch.tensor(PROMPTS[2], device=device)
        logits.append(host(model.forward(tokens, batch, model.new_cache(4, 16)).float()))
    assert (logits[1] - logits[0]).norm() <= 0.02 * logits[0].norm()
