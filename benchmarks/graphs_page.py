"""Tables of what ``graphs.py`` has found: latencies, what captures take, which goals are met."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from pages import table, versions, without_folders

Data = Mapping[str, Any]

PIECES = ("hal piecewise", "hal piecewise unguarded", "hal piecewise inductor")
OURS = ("hal capture", "hal breakable", *PIECES)
REDUCED = ("transformers reduce-overhead", "transformers reduce-overhead, one size")
ORDER = ("hal", *OURS, "transformers", "transformers compile", *REDUCED)
FEW = 128
TIE = 1.02
"""Within this factor of each other two times are the same."""
SHARE = 0.85
TITLES = {"prefill": "Prefill of one sequence", "decode": "Decode"}


def tokens(cell: Data) -> int:
    """How many tokens a step computes."""
    return cell["phase"]["rows"] * cell["phase"]["new"]


def names(cells: Sequence[Data]) -> list[str]:
    """The ways of which there is something to say."""
    found = {name for cell in cells for name in (*cell["us"], *cell["wrong"])}
    return [name for name in ORDER if name in found]


def of_kind(run: Data, kind: str) -> list[Data]:
    """The steps of a phase."""
    return [cell for cell in run["graphs"] if cell["phase"]["name"] == kind]


def kinds(run: Data) -> list[str]:
    """The phases that there are."""
    return list(dict.fromkeys(cell["phase"]["name"] for cell in run["graphs"]))


def figure(cell: Data, name: str) -> str:
    """Microseconds, marked if not from the graphs that there are; in brackets their spread."""
    if name in cell["us"]:
        mark = "†" if name in cell["slower"] else ""
        return f"{cell['us'][name]:.0f}{mark} ({cell['spread'][name]:.0f})"
    if name not in cell["wrong"]:
        return "-"
    return "wrong" if name in cell["errors"] else "failed"


def label(cell: Data) -> str:
    """The tokens of a step, and of the bucket if that is larger."""
    count, bucket = tokens(cell), cell["computed"].get(OURS[0], 0)
    return f"{count} (as {bucket})" if bucket > count else str(count)


def latencies(cells: Sequence[Data]) -> tuple[list[str], list[list[str]]]:
    """A head, and a line for each step."""
    ways = names(cells)
    return ["tokens", *ways], [[label(c), *(figure(c, n) for n in ways)] for c in cells]


def makings(run: Data, kind: str) -> tuple[list[str], list[list[str]]]:
    """A head, and a line for each way that has to be made ready."""
    found: list[list[str]] = []
    ways = run["took"].get(kind, {})
    for name, took in ((name, ways[name]) for name in ORDER if name in ways):
        errors = [c["errors"][name] for c in of_kind(run, kind) if name in c["errors"]]
        worst = f"{max(errors):.1e}" if errors else "-"
        count = len(took["buckets"])
        taken = took["bytes"] / 1e6
        each = [f"{taken / count:.1f}", f"{took['seconds'] / count:.2f}"] if count else ["-", "-"]
        mb = f"{taken:.0f}" if count else "-"
        line = [name, f"{took['seconds']:.1f}", mb, str(count or "-"), *each]
        found.append([*line, str(took["graphs"] or "-"), worst])
    head = ["way", "seconds", "MB", "sizes", "MB a size", "seconds a size", "graphs", "error"]
    return head, found


def ratios(cells: Sequence[Data], way: str, others: Sequence[str]) -> list[float]:
    """How many times as long the quickest of ``others`` takes, by step."""
    found: list[float] = []
    for cell in cells:
        times = [cell["us"][other] for other in others if other in cell["us"]]
        if times and way in cell["us"]:
            found.append(min(times) / cell["us"][way])
    return found


def verdict(found: Sequence[float], least: float) -> str:
    """Whether a goal is met, and between what the figures lie."""
    if not found:
        return "not measured"
    said = "met" if min(found) >= least else "**not met**"
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return f"{said}: {low}" if low == high else f"{said}: {low} to {high}"


def share(run: Data, way: str) -> list[float]:
    """The bytes of weights that a decode of one sequence reads in a second, over the copy's."""
    one = [cell for cell in of_kind(run, "decode") if tokens(cell) == 1 and way in cell["us"]]
    return [run["read"] / cell["us"][way] * 1e6 / run["copy"] for cell in one if run["copy"]]


def goals(run: Data) -> tuple[list[str], list[list[str]]]:
    """A head, and a line for each goal with what each way of hal's has."""
    ways = [name for name in OURS if name in names(run["graphs"])]
    every = run["graphs"]
    few = [cell for cell in every if tokens(cell) <= FEW]

    def line(goal: str, cells: Sequence[Data], others: Sequence[str], least: float) -> list[str]:
        return [goal, *(verdict(ratios(cells, way, others), least) for way in ways)]

    found = [
        line(f"up to {FEW} tokens twice as fast as transformers", few, ["transformers"], 2),
        line(f"up to {FEW} tokens twice as fast as hal without graphs", few, ["hal"], 2),
        line(f"up to {FEW} tokens as fast as reduce-overhead", few, REDUCED, 1 / TIE),
        line("as fast as transformers", every, ["transformers"], 1 / TIE),
    ]
    replayed = [[cell for cell in every if way not in cell["slower"]] for way in ways]
    eager = [
        verdict(ratios(cells, way, ["hal"]), 1 / TIE)
        for cells, way in zip(replayed, ways, strict=True)
    ]
    found.append(["from graphs as fast as hal without graphs", *eager])
    reads = [verdict(share(run, way), SHARE) for way in ways]
    found.append([f"decode of one sequence reads weights at {SHARE} of a copy", *reads])
    return ["goal", *ways], found


def floor(run: Data) -> Iterator[str]:
    """What the memory allows, and how near to it hal is without graphs."""
    one = [cell for cell in of_kind(run, "decode") if tokens(cell) == 1 and "hal" in cell["us"]]
    for cell in one if run["copy"] else []:
        least = run["read"] / run["copy"] * 1e6
        yield (
            f"A step reads {run['read'] / 1e9:.2f} GB of weights, and a copy reads and writes "
            f"{run['copy'] / 1e12:.2f} TB/s: {least:.0f} µs at least. hal without graphs "
            f"takes {cell['us']['hal']:.0f} µs for one token, so nothing that reads all weights "
            f"can be more than {cell['us']['hal'] / least:.2f} times as fast."
        )


def itself(run: Data) -> Iterator[str]:
    """How many steps are not from graphs, and how that compares with what they are."""
    cells = [cell for cell in run["graphs"] if "hal" in cell["us"]]
    found = [
        cell["us"]["hal"] / cell["us"][name]
        for cell in cells
        for name in cell["us"]
        if name in cell["slower"]
    ]
    if found:
        yield (
            f"In {len(found)} of {sum(len(cell['us'].keys() & set(OURS)) for cell in cells)} steps "
            "(†) hal calls the function itself, which it has found to be quicker than graphs. "
            f"Called as hal, that takes {min(found):.2f} to {max(found):.2f} times as long: so far "
            "may figures be off."
        )


def reasons(run: Data) -> Iterator[str]:
    """Why something is missing, once each."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for cell in run["graphs"]:
        for sort in ("wrong", "refused", "slower"):
            for name, reason in cell[sort].items():
                key = (cell["phase"]["name"], name, " ".join(reason.split()).rstrip("."))
                said.setdefault(key, []).append(str(tokens(cell)))
    for (kind, name, reason), counts in said.items():
        yield f"- {kind} of {', '.join(counts)}, {name}: {reason}"
    for kind, took in run["took"].items():
        for name, one in took.items():
            if one["cached"]:
                yield f"- {kind}, {name}: torch found {one['cached']} graphs in its cache"
            if one["skipped"]:
                yield f"- {kind}, {name}: torch did not capture {one['skipped']} graphs"


def show(run: Data) -> None:
    """Print it all."""
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    parts = [(TITLES[kind], latencies(of_kind(run, kind))) for kind in kinds(run)]
    parts += [(f"{TITLES[kind]}: ready", makings(run, kind)) for kind in kinds(run)]
    for title, (head, lines) in [*parts, ("Goals", goals(run))]:
        shown = Table(*(Column(name) for name in head), title=title)
        for line in lines:
            shown.add_row(*(cell.replace("**", "") for cell in line))
        console.print(shown)
    for said in (*itself(run), *floor(run), *reasons(run)):
        console.print(said, markup=False)


def merged(runs: Sequence[Data]) -> dict[str, Any]:
    """One run of several: of each phase the last that has it."""
    last = {kind: run for run in runs for kind in kinds(run)}
    decode = last.get("decode", runs[-1])
    return {
        **decode,
        "commands": list(dict.fromkeys(run["command"] for run in last.values())),
        "took": {kind: run["took"].get(kind, {}) for kind, run in last.items()},
        "graphs": [cell for kind, run in last.items() for cell in of_kind(run, kind)],
    }


ABOUT = """\
Microseconds of a step from the host's sight, from its call until its logits are there: the median
of rounds in which ways take turns, each after a tenth of a second of its own steps, by which the
device has settled on a clock, and in brackets what separates the slow tenth of steps from the fast
tenth. Prefill is of one sequence without past, decode of as many sequences as tokens, each
with a past of 1,023. `hal` and `transformers` are without graphs. hal's graphs are captured for the
buckets of `hal.graphs.ladder` into which these numbers of tokens fall; where that is a larger one,
it is in brackets, and `piecewise` takes one token as two. Each step was calibrated: `†` marks one
for which hal has found the function itself to be quicker, and calls that. `unguarded` and
`inductor` are without the guards of torch.compile, as `capture` and `breakable` are, and
`piecewise` is with them. torch.compile makes prefill once for any
number of tokens, and decode for each; `one size` is compiled for that number alone. Seconds are
those of captures, or of the first calls of what is compiled; bytes are by how much the memory that
torch reserves has grown. The error is that of logits, and of hal's also that of new keys and values
of the last layer, against hal without graphs."""


def graphs_page(run: Data) -> str:
    """The page of a run, or of what ``merged`` makes of several."""
    about = (
        f"{versions(run['machine'])}, transformers {run['machine']['transformers']}; Llama 3 8B's"
    )
    parts = [
        "# Graphs",
        f"{about} shape, {run['layers']} layers, random weights, bfloat16.",
        *(f"    python benchmarks/graphs.py {without_folders(c)}" for c in run["commands"]),
        "![Microseconds of a step by tokens](graphs.png)",
        "## Goals",
        table(*goals(run)),
        f"Ratios of times, of which those within {TIE} of each other count as even.",
        *itself(run),
        *floor(run),
        "## Latency",
        ABOUT,
    ]
    for kind in kinds(run):
        parts += [f"### {TITLES[kind]}", table(*latencies(of_kind(run, kind)))]
        parts.append(table(*makings(run, kind)))
    missing = "\n".join(f"{said}." for said in reasons(run))
    return "\n\n".join([*parts, *(["## Remarks", missing] if missing else [])]) + "\n"
