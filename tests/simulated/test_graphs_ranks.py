"""Captures of processes that run a model together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import contextlib, sys, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from hal.testing.simulated import simulate
import hal

rank, store, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]
simulate("musa", devices=2)
world = int(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
X = f"musa:{rank % 2}"
library = torch.library.Library("ranks", "DEF")
library.define("total(Tensor x) -> Tensor")


def total(x):
    summed = x.cpu()
    dist.all_reduce(summed)
    return summed.to(x.device)


library.impl("total", total, "PrivateUse1")
torch.library.register_fake("ranks::total", torch.empty_like, lib=library)


def one(x):
    return hal.ops.rms_norm(hal.ops.silu_and_mul(x), None) * 2


def two(x):
    return hal.ops.rms_norm(torch.ops.ranks.total.default(x * (rank + 1)), None) + x


def cut(fn, **options):
    at = {"breakable": hal.ops.rms_norm, "piecewise": hal.ops.rms_norm}
    given = {"pad": {"x": 0}, "buckets": [2, 4]} | ({"at": at[way]} if way in at else {}) | options
    return getattr(hal.graphs, way)(fn, torch.ones(4, 8, device=X), **given)


def refused(*says):
    try:
        yield
    except hal.HalError as error:
        missing = [each for each in says if each not in str(error)]
        assert not missing, f"{error} has no {missing}"
    else:
        raise AssertionError("not refused")


refused = contextlib.contextmanager(refused)
"""

CASES = {
    "the same": """
fast = cut(one)
x = torch.randn(3, 8, device=X)
assert torch.allclose(fast(x), one(x), atol=1e-6)
""",
    "one that is slower": """
import time
slow = lambda x: (time.sleep(0.0 if rank else 0.05), one(x))[1]
fast = cut(slow)
x = torch.randn(3, 8, device=X)
graphs, function = fast.calibrate(x)
assert function > 0.04, function
assert fast.stats().least == {}
""",
    "one that fails": """
failing = False


def sometimes(x):
    if failing:
        raise ValueError("no more")
    return one(x)


fast, x = cut(sometimes), torch.randn(3, 8, device=X)
failing = rank == 1
with refused("not every rank can go on", "rank 1: ValueError: no more"):
    fast.calibrate(x)
failing = False
with refused("rank 0: InvalidInput: sometimes was captured for up to 4 tokens, not 5"):
    fast.calibrate(x if rank else torch.randn(5, 8, device=X))
assert fast.stats().least == {}
assert all(seconds > 0 for seconds in fast.calibrate(x))
""",
    "one that is refused": """
with refused("rank 1: InvalidInput: pad names y"):
    cut(one, pad={"y" if rank else "x": 0})
""",
    "another kernel": """
forced = hal.use("native") if rank else contextlib.nullcontext()
with forced, refused("ranks would not capture the same", "fingerprint of rank 1 is"):
    cut(one)
""",
    "another order": """
other = lambda x: one(x)
with refused("function of rank 1 is '<lambda>'; of rank 0, 'one'"):
    cut(other if rank else one)
""",
    "other buckets": """
with refused("buckets of rank 1 is (4,); of rank 0, (2, 4)"):
    cut(one, buckets=[4] if rank else [2, 4])
""",
}
GROUP = """
pair, alone = dist.new_group([0, 2]), dist.new_group([1])
x = torch.randn(3, 8, device=X)
if rank == 1:
    try:
        cut(one, group=pair)
    except hal.InvalidInput as error:
        assert "without this one, which is 1" in str(error), error
    else:
        raise AssertionError("not refused")
# What rank 1 captures, meanwhile or never, is not asked.
fast = cut(one, group=alone if rank == 1 else pair, buckets=[4] if rank == 1 else [2, 4])
assert fast.stats().buckets == ((4,) if rank == 1 else (2, 4))
assert torch.allclose(fast(x), one(x), atol=1e-6)
if rank != 1:
    # Ranks go by the numbers that they have among all.
    with refused("buckets of rank 2 is (4,); of rank 0, (2, 4)"):
        cut(one, group=pair, buckets=[4] if rank else [2, 4])
with refused("buckets of rank 1 is (4,); of rank 0, (2, 4)"):
    cut(one, buckets=[4] if rank == 1 else [2, 4])
"""
COLLECTIVE = """
fast = cut(two, at=torch.ops.ranks.total.default)
assert fast.stats().graphs == 4
for count in (3, 4, 1):
    x = torch.arange(count * 8.).view(count, 8).to(X)
    got = fast(x)
    assert torch.allclose(got, hal.ops.rms_norm(x * 3, None) + x, atol=1e-6), got
assert fast.stats().fallbacks == {}
"""


def ranks(tmp_path: Path, code: str, way: str, count: int = 2) -> None:
    """Run a program in some processes; one that fails must not leave the others waiting."""
    code = f"{PRELUDE}{code}\ndist.barrier()\ndist.destroy_process_group()"
    given = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            [*given, str(rank), str(tmp_path / "store"), way, str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(said)


@pytest.mark.parametrize("name", CASES)
def test_ranks_compare_what_they_capture(tmp_path: Path, name: str) -> None:
    ranks(tmp_path, CASES[name], "breakable")


@pytest.mark.long
@pytest.mark.parametrize("way", ["capture", "breakable", "piecewise"])
def test_a_group_compares_without_the_others(tmp_path: Path, way: str) -> None:
    ranks(tmp_path, GROUP, way, count=3)


@pytest.mark.long
@pytest.mark.parametrize("way", ["capture", "piecewise"])
def test_so_they_do_in_every_way(tmp_path: Path, way: str) -> None:
    ranks(tmp_path, CASES["the same"] + CASES["another kernel"], way)


@pytest.mark.long
def test_a_collective_runs_between_the_pieces_of_all_ranks(tmp_path: Path) -> None:
    ranks(tmp_path, COLLECTIVE, "piecewise")
