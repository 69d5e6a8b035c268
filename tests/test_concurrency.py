"""First use by many threads at once, use after a fork, and choices of threads and tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thinned import thinned

TESTS = Path(__file__).resolve().parent

# A distribution with two backends whose import takes its time and is counted.
BACKEND = """
import time
import hal
import torch
import tally

tally.loads.append(__name__)
time.sleep(tally.pause)
backend = hal.Backend(api=1, devices=("cpu",))

def seven(x: torch.Tensor) -> torch.Tensor:
    return x.new_full((*x.shape[:-1], x.shape[-1] // 2), 7)

@hal.hookimpl
def silu_and_mul(device):
    tally.asked.append((__name__, str(device)))
    time.sleep(0.001)
    return hal.Kernel(fn=seven, name="seven")

@hal.hookimpl
def hal_capabilities(device):
    tally.capabilities.append((__name__, str(device)))
    return [hal.Capability.FP8]
"""


def distribution(at: Path, *names: str) -> None:
    """Packages that a child imports as backends, and the metadata by which hal finds them."""
    at.joinpath("tally.py").write_text("loads, asked, capabilities, pause = [], [], [], 0.002\n")
    info = at / "made_up-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    entries = "".join(f"{name} = hal_{name}\n" for name in names)
    info.joinpath("entry_points.txt").write_text(f"[hal.backends]\n{entries}")
    for name in names:
        at.joinpath(f"hal_{name}.py").write_text(BACKEND)


def child(script: str, tmp_path: Path, *flags: str, timeout: float = 120) -> Any:
    """What a fresh interpreter prints as JSON; one that hangs or warns fails."""
    distribution(tmp_path, "one", "two")
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(TESTS)!r}]\n"
    command = [sys.executable, "-W", "error", *flags, "-c", path + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


FIRST_USE = """
import collections, json, threading
import torch, hal, tally
from hal import functions, offers, plugins, policy, probe, tracing

ROUNDS, THREADS = 100, 8
x = torch.linspace(-2, 2, 16).view(2, 8)
sys.setswitchinterval(1e-6)

def as_new():
    plugins._registry = None
    offers.asked.clear()
    for cached in probe._probe, probe._bare, policy._environment, tracing._inlined:
        cached.cache_clear()
    for form in functions.FORMS.values():
        form.forget()
    for name in "hal_one", "hal_two":
        sys.modules.pop(name, None)
    del tally.loads[:], tally.asked[:], tally.capabilities[:]

def first_use(number):
    # Each thread enters by another door.
    doors = [
        lambda: None,
        lambda: hal.devices(),
        lambda: hal.explain(hal.ops.silu_and_mul, x),
        lambda: hal.fingerprint(),
        lambda: hal.use("one").__enter__(),
        lambda: hal.backends(),
        lambda: torch.ops.hal.silu_and_mul(x),
        lambda: hal.supports("fp8", "cpu"),
    ]
    answer = doors[number]()
    assert number != 7 or answer is True, "a capability is missing"
    assert number != 5 or {b.state for b in answer} == {"loaded"}, answer
    assert number != 2 or [str(c) for c in answer.candidates if c.kernel] == [
        "one:seven", "two:seven", "native:torch"], answer
    return hal.ops.silu_and_mul(x).tolist()

discovered, discoveries = plugins.discovered, []
plugins.discovered = lambda: discoveries.append(1) or discovered()
faults = collections.Counter()
for round in range(ROUNDS):
    as_new()
    del discoveries[:]
    barrier, results = threading.Barrier(THREADS), []

    def run(number):
        try:
            barrier.wait(30)
            results.append(first_use(number))
        except BaseException as error:
            faults[f"{type(error).__name__}: {error}"[:300]] += 1

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        faults["hangs"] += thread.is_alive()
    faults["other results"] += results != [[[7.0] * 4] * 2] * THREADS
    faults["registries"] += len(discoveries) != 1
    faults["loads"] += sorted(tally.loads) != ["hal_one", "hal_two"]
    asked = collections.Counter(tally.asked)
    faults["asked twice"] += asked != {("hal_one", "cpu"): 1, ("hal_two", "cpu"): 1}
    claims = collections.Counter(tally.capabilities)
    faults["claimed twice"] += claims != {("hal_one", "cpu"): 1, ("hal_two", "cpu"): 1}
print(json.dumps({"rounds": ROUNDS, "faults": +faults}))
"""


# A table that is half made shows in one round of fifteen: of a hundred, all but once in a thousand.
@pytest.mark.timeout(300)
def test_threads_that_use_hal_first_at_once_load_each_backend_once(tmp_path: Path) -> None:
    assert child(FIRST_USE, tmp_path, timeout=280) == {"rounds": 100, "faults": {}}


FORK = """
import json, os, signal, threading, time
import torch, hal, tally

x = torch.ones(2, 8)
# A child hangs in an operator of torch's that another thread was calling for the first time ever
# when it was forked: 2 of 449 did (torch 2.13, without hal).
x.new_full((2, 4), 7)
when = {when!r}
if when == "after use":
    hal.ops.silu_and_mul(x)
if when == "while loading":
    tally.pause = 0.3
    threading.Thread(target=hal.ops.silu_and_mul, args=(x,)).start()
    while not tally.loads:
        time.sleep(0.001)

def in_child():
    signal.alarm(30)
    assert hal.ops.silu_and_mul(x).tolist() == [[7.0] * 4] * 2
    with hal.use("native"):
        assert hal.ops.silu_and_mul(x).tolist() != [[7.0] * 4] * 2
    assert {{b.state for b in hal.backends()}} == {{"loaded"}}
    torch.ops.hal.silu_and_mul(x)

codes = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        try:
            in_child()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
hal.ops.silu_and_mul(x)
print(json.dumps(codes))
"""


MAKING = """
import json, os, threading, torch, hal
sys.setswitchinterval(1e-6)
names = list(hal.functions.FORMS)

def take(where, barrier, taken):
    barrier.wait()
    taken.append(all(callable(getattr(where, name)) for name in names))

def forked():
    barrier, taken = threading.Barrier(8), []
    places = [hal.ops, torch.ops.hal] * 4
    threads = [threading.Thread(target=take, args=(p, barrier, taken)) for p in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return taken == [True] * 8

assert not any(name in vars(hal.ops) for name in names)
results = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if forked() else 1)
    results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(results))
"""


def test_threads_that_take_operators_first_at_once_all_find_them(tmp_path: Path) -> None:
    assert child(MAKING, tmp_path) == [0] * 20


@pytest.mark.parametrize("when", ["before use", "after use", "while loading"])
def test_a_forked_child_chooses_as_its_parent_does(when: str, tmp_path: Path) -> None:
    # Python 3.12 warns of a fork beside threads, which is what is tried here.
    flags = "-W", "ignore::DeprecationWarning"
    assert child(FORK.format(when=when), tmp_path, *flags) == [0] * 5


SPAWN = """
import json, multiprocessing
import torch, hal
import concurrency_child

if __name__ == "__main__":
    {before}
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        print(json.dumps(pool.apply(concurrency_child.said, (hal.ops.silu_and_mul,))))
"""

SPAWNED = """
import torch, hal

def said(op):
    with hal.use("two"):
        forced = op(torch.ones(1, 4)).tolist()
    return [op is hal.ops.silu_and_mul, op(torch.ones(1, 4)).tolist(), forced]
"""


@pytest.mark.parametrize("before", thinned(["hal.ops.silu_and_mul(torch.ones(1, 4))", "pass"], 2))
def test_a_spawned_child_takes_an_op_and_chooses_for_itself(before: str, tmp_path: Path) -> None:
    tmp_path.joinpath("concurrency_child.py").write_text(SPAWNED)
    script = SPAWN.format(before=before)
    assert child(script, tmp_path) == [True, [[7.0, 7.0]], [[7.0, 7.0]]]


THREADED = """
import json, threading
import torch, hal

sys.setswitchinterval(1e-6)
x = torch.linspace(-2, 2, 16).view(2, 8)
want = {"one": torch.full((2, 4), 7.0)}
with hal.use("native"):
    want["native"] = hal.ops.silu_and_mul(x)
wrong = []

def run(outer, inner):
    for _ in range(400):
        with hal.use(outer):
            first = hal.ops.silu_and_mul(x)
            with hal.use(inner):
                second = hal.ops.silu_and_mul(x)
            third = torch.ops.hal.silu_and_mul(x)
        last = hal.ops.silu_and_mul(x)
        for got, name in (first, outer), (second, inner), (third, outer), (last, "one"):
            if not torch.equal(got, want[name]):
                wrong.append([outer, inner, name])

pairs = [("one", "native"), ("native", "one"), ("native", "native"), ("one", "one")] * 2
threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in pairs]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print(json.dumps([wrong[:3], sum(thread.is_alive() for thread in threads)]))
"""


def test_what_threads_force_stays_in_each_while_they_call(tmp_path: Path) -> None:
    assert child(THREADED, tmp_path) == [[], 0]


TASKS = """
import asyncio, json
import torch, hal

x = torch.linspace(-2, 2, 16).view(2, 8)
want = {"one": torch.full((2, 4), 7.0)}
with hal.use("native"):
    want["native"] = hal.ops.silu_and_mul(x)
wrong = []

def check(name):
    if not torch.equal(hal.ops.silu_and_mul(x), want[name]):
        wrong.append(name)

async def task(outer, inner):
    for _ in range(50):
        with hal.use(outer):
            await asyncio.sleep(0)
            check(outer)
            with hal.prefer(inner), hal.use(inner):
                await asyncio.sleep(0)
                check(inner)
                await asyncio.to_thread(check, inner)
            await asyncio.gather(held(), asyncio.sleep(0))
            check(outer)
        await asyncio.sleep(0)
        check("one")

@hal.use("native")
async def held():
    check("native")
    await asyncio.sleep(0)
    check("native")

async def main():
    pairs = [("one", "native"), ("native", "one"), ("native", "native")] * 3
    await asyncio.gather(*[task(*pair) for pair in pairs])
    check("one")

asyncio.run(main())
print(json.dumps(wrong[:5]))
"""


def test_what_tasks_force_stays_in_each_while_they_take_turns(tmp_path: Path) -> None:
    assert child(TASKS, tmp_path) == []
