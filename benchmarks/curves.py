"""A picture of what ``graphs.py`` has found: time by tokens, a line for each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from colours import COLOURS, MARKERS
from graphs_page import TITLES, Data, kinds, names, of_kind, tokens
from pages import versions

EAGER = "hal"
RATIOS = (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 4, 6, 8)


def _style(name: str, every: Sequence[str]) -> dict[str, Any]:
    """What a way looks like in all panels: dashed where it is not of hal's."""
    at = every.index(name)
    marker, colour = MARKERS[at % len(MARKERS)], COLOURS[at % len(COLOURS)]
    line = "--" if name.startswith("transformers") else "-"
    return {"marker": marker, "color": colour, "linestyle": line, "markersize": 5, "linewidth": 1.3}


def _line(axes: Axes, cells: Sequence[Data], name: str, over: str | None, style: Any) -> None:
    """One way's times, or how they compare with those of another."""
    known = [c for c in cells if name in c["us"] and (over is None or over in c["us"])]
    times = [c["us"][name] / (c["us"][over] if over else 1e3) for c in known]
    axes.plot([tokens(c) for c in known], times, label=name, **style)


def _panel(axes: Axes, cells: Sequence[Data], over: str | None, every: Sequence[str]) -> None:
    for name in every:
        _line(axes, cells, name, over, _style(name, every))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ratios = FixedLocator([ratio for ratio in RATIOS if low <= ratio <= high])
    axes.yaxis.set_major_locator(ratios if over else LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_locator(LogLocator(base=4))
    for axis in axes.xaxis, axes.yaxis:
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(f"time / that of {over} without graphs" if over else "ms", fontsize=9)
    axes.set_xlabel("tokens", fontsize=9)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.tick_params(labelsize=8)


def curves(run: Data) -> Figure:
    """A column for each phase: milliseconds, and below them how they compare with hal's own."""
    every, found = names(run["graphs"]), kinds(run)
    figure = Figure(figsize=(6.5 * len(found), 8.5), layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    for column, kind in enumerate(found):
        for axes, over in zip(panels[:, column], (None, EAGER), strict=True):
            _panel(axes, of_kind(run, kind), over, every)
        panels[0, column].set_title(TITLES[kind], loc="left", fontsize=10, fontweight="bold")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    place: Any = "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=3, fontsize=9, frameon=False)
    said = f"Llama 3 8B's shape, {run['layers']} layers: a step\n{versions(run['machine'])}"
    figure.suptitle(said, fontsize=11)
    return figure
