"""What commands print: prose, tables, JSON, progress, and how they end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hal.errors import HalError, InvalidInput

__all__ = ["asked", "emit", "fail", "progress", "say", "show"]

Result = TypeVar("Result")
Item = TypeVar("Item")

# Columns of prose, which wrap; any other cell is a name to copy, and stays whole when it is narrow.
_PROSE = {"asks", "capabilities", "claims", "does", "reason", "why"}


def fail(message: object, status: int = 2) -> NoReturn:
    """End with one line on stderr."""
    typer.echo(f"hal: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(status)


def asked(question: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Ask hal; whatever backends print goes to stderr, and a refusal ends the command."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return question(*args, **kwargs)
    except InvalidInput as error:
        fail(error)
    except HalError as error:
        fail(error, status=1)


def emit(data: object) -> None:
    """Print JSON."""
    typer.echo(json.dumps(data, indent=2))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)


def say(text: str = "") -> None:
    """Print a line of prose, wrapped to the terminal."""
    _console().print(_printable(text))


def show(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as its names need it even if the terminal is narrower."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for header in headers:
        prose = header in _PROSE
        table.add_column(header, no_wrap=not prose, overflow="fold" if prose else "ignore")
    for row in rows:
        table.add_row(*(_printable(cell) for cell in row))
    console = _console()
    unlimited = console.options.update(width=10_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)


def progress(what: Sequence[Item], named: Callable[[Item], str]) -> Iterator[Item]:
    """Go through ``what`` with a bar on stderr that names what is under way, on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(what))
        for item in what:
            bar.update(task, description=named(item))
            yield item
            bar.advance(task)


def _printable(text: str) -> str:
    """Without control characters, which the message of a backend may bring along."""
    return "".join(c if c.isprintable() else " " for c in text)
