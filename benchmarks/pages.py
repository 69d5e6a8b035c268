"""Pages in Markdown of what a run of the benchmark found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from summary import HEAD, Data, by_op, lines, totals

READING = """\
Microseconds of a call in a CUDA graph, with arguments that are not in the cache: the median of five
rounds in which providers take turns. `copy` is a copy of as many bytes as the operator has to read
and write at least, and `of copy` its time over that of hal. `x best peer` is the time of the
fastest other library over that of hal: above 1, hal is faster. Within 2 % counts as even.
`host us` is what a call takes on the host. `best backend / chosen` is 1 where hal chooses the
fastest of its backends. A tilde marks what does something else and is no peer, a dash a provider
that has nothing for the call, and `wrong` one whose results are not those of the reference; `red`
is the number of cases in which one of hal's is wrong.
"""


MODELS = ("hal", "transformers")
TITLES = {"gemv": "Products of few rows", "matmul": "8-bit products", "kv": "Cache writes"}


def title(family: str) -> str:
    """What a family's page is called."""
    return TITLES.get(family, family.capitalize())


def slug(family: str) -> str:
    """The name of a family's page and picture."""
    return family.replace(" ", "-")


def table(head: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    marks = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, marks, *found))


def versions(machine: Mapping[str, str]) -> str:
    """The device, and what it was run with."""
    shown = {"driver_version": "driver", "cuda": "CUDA", "torch": "torch", "triton": "Triton"}
    found = [f"{name} {machine[key]}" for key, name in shown.items() if machine.get(key)]
    return ", ".join([machine.get("name", "unknown device"), *found, f"hal {machine['hal']}"])


def without_folders(command: str) -> str:
    """A command in which files of one machine have their names alone."""
    return " ".join(word.rpartition("/")[2] if word[0] == "/" else word for word in command.split())


def remarks(rows: Sequence[Data]) -> Iterator[str]:
    """What is to be known of providers, once each."""
    notes = {name: note for row in rows for name, note in row["notes"].items()}
    for name, note in notes.items():
        yield f"- `~` {name}: {note}."
    judged = {(row["op"], n) for row in rows for n, how in row["compared"].items() if "in_" in how}
    for op, name in sorted(judged):
        yield f"- {op}: tokens of {name} are not compared, but all are ones that may be drawn."
    for kind, word in (("refused", "has nothing for"), ("wrong", "is wrong for")):
        said: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            for name, reason in row[kind].items():
                said.setdefault((row["op"], name, reason), []).append(row["shape"])
        for (op, name, reason), shapes in said.items():
            yield f"- {op}: {name} {word} {', '.join(f'`{s}`' for s in shapes)}: {reason}."


def page(family: str, rows: Sequence[Data], run: Mapping[str, Any]) -> str:
    """The page of a family."""
    some = [*(note for note in remarks(rows)), *absent(rows, run)]
    parts = [
        f"# {title(family)}",
        f"{versions(run['machine'])}.",
        f"    python benchmarks/run.py {without_folders(run['command'])}",
        f"![{title(family)}: times of other libraries over that of hal]({slug(family)}.png)",
        table(HEAD, totals(rows)),
        *(f"## `{op}`\n\n{table(*lines(each))}" for op, each in by_op(rows).items()),
        "## Remarks\n\n" + "\n".join(some) if some else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def absent(rows: Sequence[Data], run: Mapping[str, Any]) -> Iterator[str]:
    """Which backends were not timed for the ops of some rows, and why."""
    ops = {row["op"] for row in rows}
    for kind in ("refuted", "absent"):
        for what, reason in run[kind].items():
            if what.partition(" by ")[0] in ops:
                yield f"- Not timed: {what}: {reason}."


def models_page(run: Mapping[str, Any]) -> str:
    """The page of what ``models.py`` has found."""
    cells = run["models"]
    names = list(dict.fromkeys(name for cell in cells for name in (*cell["us"], *cell["wrong"])))
    found: list[list[str]] = []
    for cell in cells:
        phase = cell["phase"]
        said = f"{phase['name']} {phase['rows']} x {phase['new']} of {phase['keys']}"
        times = [f"{cell['us'][n]:.0f}" if n in cell["us"] else "failed" for n in names]
        errors = [f"{cell['errors'].get(who, float('nan')):.1e}" for who in MODELS]
        found.append([cell["model"], said, *times, *errors])
    head = ["model", "step", *names, *(f"error of {who}" for who in MODELS)]
    reasons = [
        f"- {cell['model']}, {cell['phase']['name']}, {who}: {reason}."
        for cell in cells
        for who, reason in cell["wrong"].items()
    ]
    about = (
        f"{versions(run['machine'])}, transformers {run['machine']['transformers']}; "
        f"{run['layers']} layers, random weights, bfloat16. Microseconds of a step from the host's "
        "sight, and the relative error of its logits against float32."
    )
    command = f"    python benchmarks/models.py {without_folders(run['command'])}"
    return "\n\n".join(["# Models", about, command, table(head, found), *reasons]) + "\n"


def index(families: Mapping[str, tuple[Sequence[Data], Mapping[str, Any]]]) -> str:
    """The page that leads to those of families."""
    found = [
        (f"[{title(family)}]({slug(family)}.md)", *line)
        for family, (rows, _) in families.items()
        for line in totals(rows)
    ]
    machines = dict.fromkeys(versions(run["machine"]) for _, run in families.values())
    parts = ["# Performance", "; ".join(machines) + ".", READING.strip()]
    return "\n\n".join([*parts, table(("family", *HEAD), found)]) + "\n"


def linked(page: str, names: Sequence[str]) -> str:
    """A page that also leads to those of other names, each once."""
    lines = [f"- [{name.capitalize()}]({name}.md)" for name in names]
    kept = [line for line in page.rstrip().split("\n") if line not in lines]
    return "\n".join(kept).rstrip() + "\n\n" + "".join(f"{line}\n" for line in lines)
