"""Find quick tiles for this device's architecture, and write them where hal_triton looks for them.

    python benchmarks/tune.py                      # every configuration
    python benchmarks/tune.py --name gate          # some; the others stay as they are

The cases are those of ``benchmarks/run.py``. A candidate is kept for sizes where, in the geometric
mean over the cases that have them, it is clearly quicker than the rule of thumb.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import multiprocessing
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import attrs
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.runtime.errors import OutOfResources

import hal
from case import Case
from cases import FAMILIES
from hal.functions import FORMS
from hal_triton import configurations
from judges import LIMIT
from measure import by_hal, release, size
from run import machine
from timing import Graph, copies, in_turn, require_cuda

Config = tuple[int, ...]
Key = tuple[str, str]
Find = Callable[[str, torch.device, str], Config | None]

DEVICE = torch.device("cuda")
MARGIN = 0.98
"""Of the time of the rule of thumb a candidate may take so much."""


@attrs.frozen
class Tunable:
    """A configuration, the families of cases that come to it, and what to try."""

    families: tuple[str, ...]
    candidates: tuple[Config, ...]


def _tiles(least: int, most: int) -> Iterator[Config]:
    """Rows, columns and warps, with so many elements for each thread."""
    for several, power, warps in itertools.product((1, 2, 4), (8, 9, 10, 11, 12), (1, 2, 4, 8)):
        if least <= several * 2**power // (32 * warps) <= most:
            yield several, 2**power, warps


def _short(least: int, most: int) -> Iterator[Config]:
    """The same for rows of 128 columns."""
    for several, warps in itertools.product((2, 4, 8, 16, 32, 64), (1, 2, 4, 8)):
        if least <= several * 128 // (32 * warps) <= most:
            yield several, 128, warps


def _heads(most: int) -> Iterator[Config]:
    """Tokens, heads of 128 columns and warps, of which there are so many at most."""
    some = [warps for warps in (1, 2, 4, 8) if warps <= most]
    for tokens, heads, warps in itertools.product((1, 2, 4), (1, 2, 4, 8, 16), some):
        if 8 <= tokens * heads * 4 // warps <= 32:
            yield tokens, heads, warps


TUNABLE = {
    "gate": Tunable(("activation",), tuple(_tiles(8, 16))),
    "sum": Tunable(("router",), tuple(_tiles(2, 8))),
    "merge": Tunable(("decode",), tuple(_short(4, 32))),
    "rotary": Tunable(("rotary",), tuple(_heads(8))),
    # More warps would race for what they share.
    "norm rotary": Tunable(("rotary",), tuple(_heads(1))),
    "rows": Tunable(("norm", "quant"), tuple((warps,) for warps in (1, 2, 4, 8, 16))),
    "groups": Tunable(("quant", "fused quant"), tuple(_tiles(8, 32))),
    "route": Tunable(
        ("router",), tuple((rows, warps) for rows in (1, 2, 4, 8, 16) for warps in (1, 2, 4, 8))
    ),
}


@contextmanager
def finding(find: Find) -> Generator[None]:
    """Let a function answer in place of the tables, and plans of earlier calls be forgotten."""
    for form in FORMS.values():
        form.forget()
    with mock.patch.object(configurations, "find", find):
        yield


def only(key: Key, config: Config | None) -> Find:
    """Tables that hold nothing but a configuration."""
    return lambda name, device, sizes: config if (name, sizes) == key else None


def asked(case: Case, names: Sequence[str]) -> list[Key]:
    """What of these names a case asks the tables for."""
    keys: list[Key] = []

    def note(name: str, device: torch.device, sizes: str) -> None:
        keys.append((name, sizes))

    with finding(note):
        once(case)
    return [key for key in dict.fromkeys(keys) if key[0] in names]


def once(case: Case) -> Any:
    """What a case returns, with the same arguments each time."""
    torch.manual_seed(0)
    args, kwargs = case.make(DEVICE)
    return by_hal(case.op, "triton")(*args, **kwargs)


def needed(names: Sequence[str]) -> dict[Key, list[Case]]:
    """The entries that the cases ask for, and the cases of each."""
    found: dict[Key, list[Case]] = defaultdict(list)
    families = dict.fromkeys(family for name in names for family in TUNABLE[name].families)
    for case in itertools.chain.from_iterable(FAMILIES[family]() for family in families):
        for key in asked(case, names):
            found[key].append(case)
    return found


def compile_share(names: Sequence[str], share: int, of: int) -> None:
    """Run a share of all candidates once, so that Triton's cache on disk has them."""
    jobs = (
        (key, config, case)
        for key, cases in needed(names).items()
        for config in TUNABLE[key[0]].candidates
        for case in cases
    )
    for key, config, case in itertools.islice(jobs, share, None, of):
        result(key, config, case)
        release()


def result(key: Key, config: Config | None, case: Case) -> Any:
    """What a case returns with a configuration; None if the device has no room for it."""
    with finding(only(key, config)):
        try:
            return once(case)
        except OutOfResources:
            return None


def times(key: Key, case: Case, cold: int) -> dict[Config | None, float]:
    """Microseconds by configuration, None being the rule of thumb, of those that are right."""
    want, graphs = result(key, None, case), {}
    args, kwargs = case.make(DEVICE)
    count = copies(min(size((*args, *kwargs.values())), case.moved), cold)
    sets = [(args, kwargs), *(case.make(DEVICE) for _ in range(count - 1))]
    for config in (None, *TUNABLE[key[0]].candidates):
        got = result(key, config, case)
        if got is None or not case.judge(got, want, args, kwargs) < LIMIT:
            continue
        form = getattr(hal.ops, case.op)
        calls = [functools.partial(form, *a, **k) for a, k in sets]
        with finding(only(key, config)), hal.use("triton"):
            graphs[config] = Graph(calls)
    found = {config: time.us for config, time in in_turn(graphs).items()}
    release()
    return found


def best(found: Sequence[dict[Config | None, float]]) -> tuple[Config | None, float]:
    """The best configuration over some cases, and its share of the time of the rule of thumb."""
    shares = {
        config: math.exp(sum(math.log(each[config] / each[None]) for each in found) / len(found))
        for config in set.intersection(*(set(each) for each in found))
    }
    config = min(shares, key=lambda c: shares[c])
    return (config, shares[config]) if shares[config] < MARGIN else (None, 1.0)


def tuned(names: Sequence[str]) -> dict[str, dict[str, Config]]:
    """The tables of these names; and print what is gained."""
    cold = 3 * torch.cuda.get_device_properties(0).L2_cache_size
    tables: dict[str, dict[str, Config]] = {name: {} for name in names}
    shown = Table("name", "sizes", "configuration", "of the time", "by case, us")
    for key, cases in track(needed(names).items(), "timing", console=Console(stderr=True)):
        found = [times(key, case, cold) for case in cases]
        config, share = best(found)
        if config is not None:
            tables[key[0]][key[1]] = config
        quickest = (f"{each[None]:.1f} > {min(each.values()):.1f}" for each in found)
        shown.add_row(*key, str(config or "as it was"), f"{share:.2f}", ", ".join(quickest))
    Console(width=200).print(shown)
    return tables


def main(
    name: Annotated[list[str] | None, typer.Option(help="Which configurations.")] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of hal_triton's table.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that compile.")] = 8,
) -> None:
    """Time all candidates on this device and write the table of its architecture."""
    require_cuda()
    names = name or list(TUNABLE)
    spawn = multiprocessing.get_context("spawn")
    shares = [spawn.Process(target=compile_share, args=(names, i, jobs)) for i in range(jobs)]
    for process in shares:
        process.start()
    for process in shares:
        process.join()
    path = output or configurations.TABLES / f"cuda-{hal.device('cuda').arch}.json"
    before = json.loads(path.read_text()) if path.exists() else {"tables": {}}
    tables = before["tables"] | tuned(names)
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "tables": tables}, indent=1)
    # A configuration takes a line, not one for each number.
    text = re.sub(r"\[[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
    path.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
