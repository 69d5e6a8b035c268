"""Find quick tiles for this device's architecture, and write them where hal_triton looks for them.

    python benchmarks/tune.py                      # every configuration
    python benchmarks/tune.py --name gate          # some; the others stay as they are
    python benchmarks/tune.py --family matmul      # for some cases alone

The cases are those of ``benchmarks/run.py``. A candidate is kept for sizes where, in the geometric
mean over the cases that have them, it is clearly quicker than the rule of thumb. What is found is
written at once, and used for what is timed after it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import attrs
import torch
import typer
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.jit import JITFunction

import hal
from case import Arguments, Case
from cases import FAMILIES
from hal.functions import FORMS
from hal_triton import configurations
from hal_triton.launch import Special
from judges import LIMIT
from measure import by_hal, release, size
from neighbours import Config
from run import machine
from timing import Graph, copies, in_turn, require_cuda
from tunable import TUNABLE

Key = tuple[str, str]
Find = Callable[[str, torch.device, str, Config], Config]
Tables = dict[str, dict[str, Config]]

DEVICE = torch.device("cuda")
MARGIN = 0.98
"""Of the time of the rule of thumb a candidate may take so much."""


@attrs.define
class Entry:
    """A line of a table: the cases that ask for it, and what rules of thumb say for them."""

    key: Key
    cases: list[Case] = attrs.field(factory=list)
    usual: dict[Config, None] = attrs.field(factory=dict)

    def tries(self) -> list[Config]:
        """What may be better than the rule of thumb, each once."""
        name, sizes = self.key
        of, numbers = TUNABLE[name], tuple(map(int, sizes.split(",")))
        # What is usual for some of the cases may do for all of them.
        found = dict.fromkeys(
            (*of.candidates, *of.near(next(iter(self.usual)), numbers), *self.usual)
        )
        return [config for config in found if len(self.usual) > 1 or config not in self.usual]


@contextmanager
def finding(find: Find) -> Generator[None]:
    """Let a function answer in place of the tables, and plans of earlier calls be forgotten."""
    for form in FORMS.values():
        form.forget()
    with mock.patch.object(configurations, "find", find):
        yield


def instead(tables: Tables, key: Key, config: Config | None) -> Find:
    """Tables with a configuration for a key, or with none for it."""

    def find(name: str, _: torch.device, sizes: str, otherwise: Config) -> Config:
        if (name, sizes) == key:
            return otherwise if config is None else config
        return tables.get(name, {}).get(sizes, otherwise)

    return find


def shaped(case: Case) -> Arguments:
    """Arguments like a case's, in memory that nobody wrote."""

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)

    torch.cuda.empty_cache()  # Many processes have some at once.
    args, kwargs = case.make(torch.device("meta"))
    return tuple(map(placed, args)), {name: placed(x) for name, x in kwargs.items()}


def planned(case: Case, given: Arguments, launch: Callable[..., None]) -> None:
    """Have a function take what a case would launch."""
    with mock.patch.object(Special, "__call__", launch):
        by_hal(case.op, "triton")(*given[0], **given[1])


def _not_launched(*_: Any) -> None:
    pass


def needed(name: str, tables: Tables, families: Collection[str]) -> dict[Key, Entry]:
    """The entries of a table that cases of some families ask for."""
    found: dict[Key, Entry] = {}
    for case in itertools.chain.from_iterable(
        FAMILIES[family]() for family in TUNABLE[name].families if family in families
    ):

        def note(asked: str, _: torch.device, sizes: str, otherwise: Config) -> Config:
            if asked != name:
                return tables.get(asked, {}).get(sizes, otherwise)
            entry = found.setdefault((name, sizes), Entry((name, sizes)))
            entry.usual[otherwise] = None
            if case not in entry.cases:  # noqa: B023  # Called at once.
                entry.cases.append(case)  # noqa: B023
            return otherwise

        with finding(note):
            planned(case, shaped(case), _not_launched)
    return found


def compile_share(
    names: Sequence[str], families: Collection[str], tables: Tables, share: int, of: int
) -> None:
    """Compile a share of what all candidates launch, so that Triton's cache on disk has it."""
    met: set[Special] = set()
    run = JITFunction.run

    def compiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, *args, **{**kwargs, "warmup": True})

    def launch(special: Special, grid: Any, tensors: Any, numbers: Any) -> None:
        if special not in met:
            met.add(special)
            if len(met) % of == share:
                with suppress(TritonError, RuntimeError):
                    special._slow(grid, tensors, numbers, False)  # pyright: ignore

    with mock.patch.object(JITFunction, "run", compiled):
        for name in names:
            for key, entry in needed(name, tables, families).items():
                for case in entry.cases:
                    given = shaped(case)
                    for config in (None, *entry.tries()):
                        with finding(instead(tables, key, config)):
                            planned(case, given, launch)
                    del given


def once(case: Case) -> Any:
    """What a case returns, with the same arguments each time."""
    torch.manual_seed(0)
    args, kwargs = case.make(DEVICE)
    return by_hal(case.op, "triton")(*args, **kwargs)


def result(find: Find, case: Case) -> Any:
    """What a case returns with some tables; None if that does not compile, or has no room."""
    with finding(find):
        try:
            return once(case)
        except (TritonError, RuntimeError) as error:
            print(f"{case.op} {case.shape}: {error}", file=sys.stderr)
            return None


def times(entry: Entry, case: Case, tables: Tables, cold: int) -> dict[Config | None, float]:
    """Microseconds by configuration, None being the rule of thumb, of those that are right."""
    graphs: dict[Config | None, Graph] = {}
    with finding(instead(tables, entry.key, None)):
        want = once(case)
    args, kwargs = case.make(DEVICE)
    count = copies(min(size((*args, *kwargs.values())), case.moved), cold)
    sets = [(args, kwargs), *(case.make(DEVICE) for _ in range(count - 1))]
    for config in (None, *entry.tries()):
        find = instead(tables, entry.key, config)
        got = result(find, case)
        if got is None or not case.judge(got, want, args, kwargs) < LIMIT:
            continue
        form = getattr(hal.ops, case.op)
        calls = [functools.partial(form, *a, **k) for a, k in sets]
        with finding(find), hal.use("triton"):
            graphs[config] = Graph(calls)
    found = {config: each.us for config, each in in_turn(graphs).items()}
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


class Written:
    """The file of an architecture's tables, of which every line is kept as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path, self.machine = path, machine()
        before = json.loads(path.read_text())["tables"] if path.exists() else {}
        self.tables: Tables = {
            name: {sizes: tuple(config) for sizes, config in table.items()}
            for name, table in before.items()
        }

    def keep(self, name: str, keys: Collection[Key]) -> None:
        """Forget what no case asks for any more."""
        table = self.tables.get(name, {})
        self.tables[name] = {sizes: table[sizes] for sizes in table if (name, sizes) in keys}

    def put(self, key: Key, config: Config | None) -> None:
        """Note what is best for a key, or that the rule of thumb is."""
        table = self.tables.setdefault(key[0], {})
        table.pop(key[1], None)
        if config is not None:
            table[key[1]] = config
        self.path.parent.mkdir(exist_ok=True)
        text = json.dumps({"machine": self.machine, "tables": self.tables}, indent=1)
        # A configuration takes a line, not one for each number.
        text = re.sub(r"\[[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
        self.path.write_text(text + "\n")


def tune(name: str, written: Written, families: Collection[str]) -> None:
    """Time what a name is needed for, keep what is best, and print what is gained."""
    cold = 3 * torch.cuda.get_device_properties(0).L2_cache_size
    entries = needed(name, written.tables, families)
    if all(family in families for family in TUNABLE[name].families):
        written.keep(name, entries)
    for key, entry in entries.items():
        found = [times(entry, case, written.tables, cold) for case in entry.cases]
        config, share = best(found)
        written.put(key, config)
        quickest = ", ".join(f"{each[None]:.1f} > {min(each.values()):.1f}" for each in found)
        usual = " or ".join(map(str, entry.usual))
        said = f"{name} {key[1]}: {usual} > {config or 'as it was'}: {share:.2f} ({quickest} us)"
        print(said, flush=True)


def compile_all(names: Sequence[str], families: Collection[str], tables: Tables, jobs: int) -> None:
    """Compile all candidates, in so many processes."""
    spawn = multiprocessing.get_context("spawn")
    given = names, families, tables
    shares = [spawn.Process(target=compile_share, args=(*given, i, jobs)) for i in range(jobs)]
    for process in shares:
        process.start()
    for process in shares:
        process.join()


def main(
    name: Annotated[list[str] | None, typer.Option(help="Which configurations.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Of which cases.")] = None,
    output: Annotated[Path | None, typer.Option(help="Instead of hal_triton's table.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that compile.")] = 8,
) -> None:
    """Time all candidates on this device and write the table of its architecture."""
    require_cuda()
    names, families = name or list(TUNABLE), set(family or FAMILIES)
    written = Written(output or configurations.TABLES / f"cuda-{hal.device('cuda').arch}.json")
    began = time.monotonic()
    compile_all(names, families, written.tables, jobs)
    print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)
    for each in names:
        tune(each, written, families)
        print(f"{each}: done after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
