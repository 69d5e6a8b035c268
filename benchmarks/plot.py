"""Pictures and pages of what ``run.py``, ``models.py`` and ``graphs.py`` have written.

    python benchmarks/plot.py results.json models.json graphs.json docs/performance

Needs the extra ``benchmarks``. Of several files the last that has a family, or a phase of what runs
from graphs, is shown. Without files of ``run.py`` the pages of families stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from colours import COLOURS, MARKERS
from curves import curves
from graphs_page import graphs_page, merged
from pages import index, linked, models_page, page, slug, title, versions
from summary import Data, by_op, columns, limited_by_products, mine, peers_of

mpl.use("Agg")

GREY = "#777777"
TICKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 16, 32, 64, 128)
# A library looks the same in all pictures.
KNOWN = (
    *("torch", "sgl", "vllm", "flashinfer", "compile", "fa3", "bf16"),
    *("cudnn", "flash", "torch block", "sdpa", "bmm", "argmax"),
)

Style = tuple[str, str]


def styles(rows: Sequence[Data]) -> dict[str, Style]:
    """A colour and a marker for each peer, together unlike those of the others."""
    ours = {name for row in rows for name in row["ours"]}
    found = [name for name in columns(rows) if name not in ours]
    names = list(dict.fromkeys((*KNOWN, *found)))
    turns = [(i % len(COLOURS), (i + i // len(COLOURS)) % len(MARKERS)) for i in range(len(names))]
    every = {name: (COLOURS[c], MARKERS[m]) for name, (c, m) in zip(names, turns, strict=True)}
    return {name: every[name] for name in found}


def label(row: Data, us: float | None) -> str:
    """The shape, and what hal takes."""
    return f"{row['shape']}  {us:.{0 if us >= 100 else 1}f} µs" if us else row["shape"]


def panel(axes: Axes, op: str, rows: Sequence[Data], style: Mapping[str, Style]) -> None:
    """Times over that of hal, by shape: a peer above the line is slower than hal."""
    axes.axhline(1, color="black", linewidth=1.2, label="hal")
    times = [mine(row) for row in rows]
    for name, (colour, marker) in style.items():
        found = [
            (at, row["us"][name] / us)
            for at, (row, us) in enumerate(zip(rows, times, strict=True))
            if us and name in row["us"]
        ]
        peer = any(name in peers_of(row) for row in rows)
        face = colour if peer else "none"
        axes.plot(
            *([list(side) for side in zip(*found, strict=True)] or ([], [])),
            marker,
            color=colour,
            markerfacecolor=face,
            markersize=7,
            label=name if peer else f"{name} (no peer)",
        )
    ceiling = [
        (at, row["copy_us"] / us)
        for at, (row, us) in enumerate(zip(rows, times, strict=True))
        if us and row["copy_us"] and not limited_by_products(row)
    ]
    if ceiling:
        where, share = (list(side) for side in zip(*ceiling, strict=True))
        axes.plot(where, share, "_", color=GREY, markersize=14, label="a copy of as many bytes")
    finish(axes, op, [label(row, us) for row, us in zip(rows, times, strict=True)])


def finish(axes: Axes, op: str, labels: Sequence[str]) -> None:
    """Labels, and a scale on which twice and half are as far from 1."""
    low, high = axes.dataLim.intervaly
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(0.45, low * 0.87), max(2.2, high * 1.15))
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, max(len(labels), 4) - 0.4)
    axes.set_title(op, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel("time / hal's", fontsize=9)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def layout(groups: Mapping[str, Sequence[Data]]) -> list[list[str]]:
    """The ops of each line of panels: one with many shapes by itself, two with few of them."""
    wide = [op for op, rows in groups.items() if len(rows) > 10]
    narrow = [op for op in groups if op not in wide]
    pairs = [narrow[at : at + 2] for at in range(0, len(narrow), 2)]
    return [[op, op] for op in wide] + [pair if len(pair) == 2 else pair * 2 for pair in pairs]


def picture(family: str, rows: Sequence[Data], machine: Mapping[str, str]) -> Figure:
    """A panel for each op; its height leaves room for the labels, its width for the shapes."""
    groups, style = by_op(rows), styles(rows)
    grid = layout(groups)
    width = max(11.0, 1.5 + 0.42 * max(len(some) for some in groups.values()))
    figure = Figure(figsize=(width, 1.2 + 3.1 * len(grid)), layout="constrained")
    panels = figure.subplot_mosaic(grid)
    for op, axes in panels.items():
        some = groups[op]
        panel(axes, op, some, {n: s for n, s in style.items() if any(n in r["us"] for r in some)})
    found = {
        name: each for axes in panels.values() for each, name in zip(*legend(axes), strict=True)
    }
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=min(6, len(found)),
        fontsize=9,
        frameon=False,
    )
    said = f"{title(family)}: time over that of hal\n{versions(machine)}"
    figure.suptitle(said, fontsize=11)
    return figure


def legend(axes: Axes) -> tuple[list[Any], list[str]]:
    return axes.get_legend_handles_labels()


def families(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[Data], Mapping[str, Any]]]:
    """The rows of each family, with the run that they are of."""
    found: dict[str, tuple[list[Data], Mapping[str, Any]]] = {}
    for run in runs:
        names = dict.fromkeys(row["family"] for row in run["rows"])
        found |= {n: ([r for r in run["rows"] if r["family"] == n], run) for n in names}
    return found


def main(
    results: Annotated[list[Path], typer.Argument(help="What run.py has written.")],
    where: Annotated[Path, typer.Argument(help="The folder for pictures and pages.")],
) -> None:
    """Write pictures and pages, and a page that leads to them."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    found = families([run for run in runs if "rows" in run])
    where.mkdir(parents=True, exist_ok=True)
    for family, (rows, run) in found.items():
        picture(family, rows, run["machine"]).savefig(where / f"{slug(family)}.png", dpi=110)
        (where / f"{slug(family)}.md").write_text(page(family, rows, run), encoding="utf-8")
    for run in [run for run in runs if "models" in run][-1:]:
        (where / "models.md").write_text(models_page(run), encoding="utf-8")
    if some := [run for run in runs if "graphs" in run]:
        curves(merged(some)).savefig(where / "graphs.png", dpi=110)
        (where / "graphs.md").write_text(graphs_page(merged(some)), encoding="utf-8")
    leads = where / "index.md"
    there = leads.read_text(encoding="utf-8") if leads.exists() else "# Performance\n"
    others = [name for name in ("models", "graphs") if (where / f"{name}.md").exists()]
    leads.write_text(linked(index(found) if found else there, others), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
