"""The command line: ``hal``, also ``python -m hal``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import hal
from hal.arguments import dtype_named, fitting, given, parsed_shape, parsed_value, words
from hal.checks import describe
from hal.doctor import findings
from hal.hardware import Device
from hal.op import OPS, Op
from hal.policy import op_name
from hal.probe import present
from hal.report import Report, capabilities
from hal.select import Choice
from hal.terminal import asked, emit, fail, say, show

__all__ = ["app", "main"]

app = typer.Typer(
    help="What hal found on this machine, which kernels it chooses, and why.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
OnDevice = Annotated[str | None, typer.Option("--device", help="Where, in torch's notation.")]


def _device(name: str | None) -> Device | None:
    """The device that was typed, None if there was none."""
    if name is None:
        return None
    none = f"there is no device {name!r}; this machine has {', '.join(map(str, hal.devices()))}"
    try:
        found = hal.device(name)
    except hal.InvalidInput:
        raise hal.InvalidInput(none) from None
    if not present(found):
        _warn(none)  # What would be chosen there can be asked all the same.
    return found


def _optional(value: object) -> str:
    return "" if value is None else str(value)


def _warn(message: Warning | str, *_: object) -> None:
    typer.echo(f"hal: warning: {' '.join(str(message).split())}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hal {hal.__version__}, torch {torch.__version__}")
        raise typer.Exit


def _simulate(device: str | None) -> None:
    if device is not None:
        from hal.testing.simulated import simulate  # With a compiler's help: rarely needed.

        name, _, card = device.partition(":")
        asked(simulate, name, card or None)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions.")
    ] = False,
    simulated: Annotated[
        str | None,
        typer.Option("--simulate", help="With a device on host memory, NAME or NAME:CARD."),
    ] = None,
) -> None:
    """What hal found on this machine, which kernels it chooses, and why."""
    del version  # Its callback has printed it by now.
    warnings.showwarning = _warn
    _simulate(simulated)


@app.command("devices")
def list_devices(as_json: Json = False) -> None:
    """List the devices of this machine and what they can do."""
    found = asked(hal.devices)
    if as_json:
        return emit([device.to_dict() for device in found])
    rows = [(str(d), _name(d), _optional(d.arch), _memory(d), _capabilities(d)) for d in found]
    return show(("device", "name", "arch", "memory", "capabilities"), rows)


def _name(device: Device) -> str:
    return f"{device.name} (simulated)" if device.simulated else device.name


def _memory(device: Device) -> str:
    return "" if device.memory is None else f"{device.memory / 2**30:.0f} GiB"


def _capabilities(device: Device) -> str:
    return " ".join(sorted(capability.value for capability in device.capabilities))


@app.command("ops")
def list_ops(as_json: Json = False) -> None:
    """List the operators."""
    if as_json:
        return emit([_op_data(op) for op in OPS.values()])
    rows = [(op.name, _in_place(op), "yes" if op.grad else "", _summary(op)) for op in OPS.values()]
    return show(("op", "in place", "gradient", "does"), rows)


def _summary(op: Op) -> str:
    return (inspect.getdoc(op.contract) or "").partition("\n")[0].replace("``", "")


def _in_place(op: Op) -> str:
    return "only" if op.mutates else "also" if op.inplace else ""


def _op_data(op: Op) -> dict[str, Any]:
    return {
        "name": op.name,
        "signature": str(op.signature),
        "inplace": list(op.inplace),
        "mutates": list(op.mutates),
        "gradient": op.grad,
        "summary": _summary(op),
    }


@app.command("backends")
def list_backends(as_json: Json = False) -> None:
    """List the backends that are installed, with how far each came."""
    found = asked(hal.backends)
    if as_json:
        return emit([backend.to_dict() for backend in found])
    rows = [(b.name, b.state, f"{b.distribution} {b.version}", _optional(b.reason)) for b in found]
    return show(("backend", "state", "distribution", "reason"), rows)


@app.command()
def explain(
    op: Annotated[str, typer.Argument(help="The name of an operator.")],
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", help="4,8192 for the next tensor; also weight=8192 or ids=4:int64."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="For the tensors that name none.")] = "bfloat16",
    device: OnDevice = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Another argument, as in eps=1e-5.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain which kernel serves a call, and why not the others.

    Without shapes it explains the choice with conditions counted as met.
    """
    choice, arguments = asked(_explained, op, shapes or (), dtype, device, values or ())
    described = {name: describe(value) for name, value in arguments.items()}
    if as_json:
        return emit(choice.to_dict() | {"arguments": described})
    say(f"{choice.op} on {choice.device}")
    for name, text in described.items():
        say(f"  {name}: {text}")
    rows = [("->" if c.chosen else "", str(c), c.reason) for c in choice.candidates]
    return show(("", "kernel", "why"), rows)


def _explained(
    name: str, shapes: Sequence[str], dtype: str, device: str | None, values: Sequence[str]
) -> tuple[Choice, dict[str, Any]]:
    """The choice, with the arguments it was made for."""
    op, wanted = OPS[op_name(name)], dtype_named(dtype)
    where = _device(device)
    if not shapes and not values:
        return hal.report(where or hal.device(), ops=[op.name]).choices[0], {}
    found = given(op, [parsed_shape(text) for text in shapes], dict(map(parsed_value, values)))
    return fitting(lambda **arguments: hal.explain(op.name, **arguments), found, wanted, where)


@app.command("report")
def print_report(as_json: Json = False, device: OnDevice = None) -> None:
    """Print what serves each operator on each device, and why."""
    found = asked(lambda: hal.report(_device(device)))
    if as_json:
        return emit(found.to_dict())
    say(f"hal {hal.__version__}, torch {torch.__version__}")
    for names, rows in _alike(found):
        say()
        say(", ".join(names))
        show(("op", "kernel", "why", "claims"), rows)
        for told in dict.fromkeys(_told(each) for each in found.devices if str(each) in names):
            say(f"device: {told}")
    say()
    for backend in found.backends:
        origin = f"{backend.distribution} {backend.version}"
        reason = f": {backend.reason}" if backend.reason else ""
        say(f"backend {backend.name} ({origin}): {backend.state}{reason}")
    for name, done in found.repairs.items():
        say(f"repair {name}: {done}")
    for problem in found.problems:
        say(f"problem: {problem}")
    return None


def _told(device: Device) -> str:
    """How the capabilities of a device stand."""
    stand = ["simulated, so that nothing here is of hardware"] * device.simulated
    stand += [f"{each} {word}" for each, word in capabilities(device).items()]
    return ", ".join(stand) or "nothing is claimed of it"


def _alike(report: Report) -> list[tuple[list[str], tuple[tuple[str, ...], ...]]]:
    """Devices with the same rows together: a machine has eight of a kind."""
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for device in map(str, report.devices):
        rows = tuple((op, *rest) for op, where, *rest in report.rows() if where == device)
        groups.setdefault(rows, []).append(device)
    return [(names, rows) for rows, names in groups.items()]


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is wrong, and what to do about it.

    The exit status is 1 if there is something: a backend that could not be loaded or that made
    trouble, or an accelerator on which the reference serves.
    """
    report = asked(hal.report)
    found = findings(report)
    if as_json:
        emit({"ok": not found, "findings": [finding.to_dict() for finding in found]})
    else:
        for finding in found:
            say(f"wrong: {finding.what}")
            say(f"   do: {finding.remedy}")
        names = ", ".join(map(str, report.devices)) or "no device"
        say(f"{len(found) or 'nothing'} wrong; {len(OPS)} ops looked at on {names}")
    if found:
        raise typer.Exit(1)


@app.command()
def check(
    backend: Annotated[str, typer.Argument(help="The name of a backend.")],
    ops: Annotated[str | None, typer.Option(help="Some operators, separated by commas.")] = None,
    checks: Annotated[str | None, typer.Option(help="Some checks, separated by commas.")] = None,
    device: OnDevice = None,
    thorough: Annotated[bool, typer.Option(help="Every sample for every check; slow.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the outcome as JSON here.")] = None,
    record: Annotated[bool, typer.Option(help="Keep the outcome, for `hal report`.")] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="In this process, for a debugger.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold a backend to what it claims: what is proven, what is refuted, what was not tried.

    The checks run in a child process: a kernel that ends it, or hangs, is refuted by that, and the
    rest goes on. The exit status is 1 if something is refuted, or nothing is proven.
    """
    try:
        from hal.testing.command import conformance  # With samples and oracles: it takes a while.
    except ModuleNotFoundError as error:
        fail(f"the conformance kit needs {error.name}: pip install 'torch-hal[testing]'")
    verdict = asked(
        conformance, backend, device, words(ops), words(checks), thorough, apart=not in_process
    )
    if as_json:
        emit(verdict.to_dict())
    else:
        show(("", "check", "asks"), verdict.legend())
        say()
        show(*verdict.table())
        for line in (*verdict.marks(), *verdict.device_lines(), *verdict.remarks()):
            say(line)
        say(verdict.summary())
    for path in filter(None, (output, verdict.recorded if record else None)):
        asked(verdict.write, path)
    if not verdict.ok:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app(prog_name="hal")
