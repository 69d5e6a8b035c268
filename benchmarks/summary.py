"""What the rows of a run say: shares of the ceiling, ratios to the best peer, who wins where."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Data = dict[str, Any]
"""A row as ``Row.to_dict`` has it, read from JSON or not."""

AUTO = "hal"
CASE = "case"
BAND = 0.02
"""Times that are nearer to each other than this count as equal."""


def mine(row: Data) -> float | None:
    """Microseconds of what hal chooses, or of the best backend if it was not asked to choose."""
    times = row["us"]
    found = times.get(AUTO) or min((times[n] for n in row["ours"] if n in times), default=None)
    return float(found) if found else None


def peers_of(row: Data) -> dict[str, float]:
    """Microseconds of the peers that do the same."""
    left_out = {*row["ours"], AUTO, *row["notes"]}
    return {name: us for name, us in row["us"].items() if name not in left_out}


def best_peer(row: Data) -> tuple[str, float] | None:
    """The fastest of them."""
    return min(peers_of(row).items(), key=lambda item: item[1], default=None)


def ratio(row: Data) -> float | None:
    """The best peer's time over ours: above 1, hal is faster."""
    us, peer = mine(row), best_peer(row)
    return peer[1] / us if us and peer else None


def share(row: Data) -> float | None:
    """The time of a copy of as many bytes over ours."""
    us = mine(row)
    return row["copy_us"] / us if us and row["copy_us"] else None


def limited_by_products(row: Data) -> bool:
    """Whether products may take longer than bytes: an H100 makes 300 of bfloat16 for a byte."""
    return row["flops"] > 150 * row["bytes"]


def speed(row: Data) -> str:
    """How fast hal is, by operations where bytes are not what limits it."""
    us = mine(row)
    if not us:
        return ""
    if limited_by_products(row):
        return f"{row['flops'] / us / 1e6:.0f} TFLOP/s"
    return f"{row['bytes'] / us / 1e3:.0f} GB/s"


def backends_of(row: Data) -> dict[str, float]:
    """Microseconds of the backends, hal's own choice apart."""
    return {n: row["us"][n] for n in row["ours"] if n in row["us"] and n != AUTO}


def choice(row: Data) -> float | None:
    """The best backend's time over that of what hal chooses; about 1 where it chooses well."""
    found, times = row["us"].get(AUTO), backends_of(row).values()
    return min(times) / found if found and times else None


def record(ratios: Sequence[float]) -> str:
    """Wins, ties and losses against the best peer."""
    wins = sum(r > 1 + BAND for r in ratios)
    losses = sum(r < 1 - BAND for r in ratios)
    return f"{wins}/{len(ratios) - wins - losses}/{losses}"


def mean(values: Sequence[float]) -> str:
    """The geometric mean, or nothing."""
    return f"{statistics.geometric_mean(values):.2f}" if values else ""


def by_op(rows: Sequence[Data]) -> dict[str, list[Data]]:
    found: dict[str, list[Data]] = {}
    for row in rows:
        found.setdefault(row["op"], []).append(row)
    return found


HEAD = (
    "op",
    "cases",
    "x best peer, M <= 64",
    "won/even/lost",
    "x best peer, M >= 1024",
    "won/even/lost",
    "x best peer, all",
    "of copy",
    "best backend / chosen",
    "red",
)


def totals(rows: Sequence[Data]) -> list[tuple[str, ...]]:
    """A line for each op, as ``HEAD`` names it."""
    lines: list[tuple[str, ...]] = []
    for op, some in by_op(rows).items():
        pairs = [(row["rows"], value) for row in some if (value := ratio(row))]
        small = [value for count, value in pairs if count <= 64]
        large = [value for count, value in pairs if count >= 1024]
        shares = [value for row in some if (value := share(row))]
        chosen = [value for row in some if (value := choice(row))]
        red = sum(any(n in row["wrong"] for n in (*row["ours"], CASE)) for row in some)
        compared = [
            *(mean(small), record(small) if small else ""),
            *(mean(large), record(large) if large else ""),
        ]
        means = mean([value for _, value in pairs]), mean(shares), mean(chosen)
        lines.append((op, str(len(some)), *compared, *means, str(red or "")))
    return lines


def columns(rows: Sequence[Data]) -> list[str]:
    """All providers, those of hal first."""
    ours = dict.fromkeys(name for row in rows for name in row["ours"])
    found = (n for row in rows for n in (*row["us"], *row["wrong"]) if n != CASE)
    return list(dict.fromkeys((*ours, *found)))


def cell(row: Data, name: str) -> str:
    """Microseconds, with a tilde where it is no peer, or why there are none."""
    if name in row["us"]:
        return ("~" if name in row["notes"] else "") + f"{row['us'][name]:.2f}"
    if name in row["wrong"]:
        return "wrong"
    return "-" if name in row["refused"] else ""


def lines(rows: Sequence[Data]) -> tuple[list[str], list[list[str]]]:
    """The head of a table and its lines, one for each case."""
    names = columns(rows)
    head = ["shape", *names, "copy", "speed", "of copy", "x best peer", "host us"]
    auto = any(AUTO in row["ours"] for row in rows)
    head += ["chosen"] if auto else []
    found: list[list[str]] = []
    for row in rows:
        first = next((row["host_us"][n] for n in row["ours"] if n in row["host_us"]), None)
        ends = [
            f"{row['copy_us']:.2f}" if row["copy_us"] else "",
            speed(row),
            f"{value:.2f}" if (value := share(row)) else "",
            f"{value:.2f} {best[0]}" if (value := ratio(row)) and (best := best_peer(row)) else "",
            f"{first:.1f}" if first else "",
            *([row["served"]] if auto else []),
        ]
        found.append([row["shape"], *(cell(row, n) for n in names), *ends])
    return head, found
