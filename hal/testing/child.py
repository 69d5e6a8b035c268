"""A child process for checks, which a kernel may end, by a wrong address, or hang."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import signal
import warnings
from typing import Any

import attrs
import torch

from hal.errors import BackendError
from hal.evidence import DEVICE
from hal.probe import device as find_device
from hal.testing.attempt import tried
from hal.testing.checks import Effort
from hal.testing.checks.check import under_way
from hal.testing.outcome import Cell, Refuted, Status
from hal.testing.questions import Question, questions
from hal.testing.simulated import Simulation, simulate, simulation
from hal.testing.subject import HOST

__all__ = ["ask"]

# No case takes so long; a kernel that waits for itself would wait for ever.
_SECONDS = 300

Answer = tuple[Cell, "Refuted | None"]


def ask(question: Question, effort: Effort) -> Answer:
    """Run a check in a child; if the child dies, the claim is refuted by that."""
    try:
        if question.isolated and not question.device.accelerator:
            return _forked(question, effort)
        return _server().ask(question, effort)
    except _Died as error:
        reason = f"the process {error}"
        return Cell(question.op, question.kernel, question.check, Status.REFUTED, 0, reason), None


class _Died(Exception):
    """A child did not answer: how it ended, and which case was under way."""


def _received(receiver: Any, process: Any) -> Any:
    """What a child answers; before it does, it names the cases."""
    case = ""
    try:
        while receiver.poll(_SECONDS):
            said = receiver.recv()
            if not isinstance(said, str):
                return said
            case = f" in case {said}"
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise _Died(f"{how}{case}") from None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGABRT)  # On which faulthandler says where it is.
    process.join(5)
    raise _Died(f"did not go on for {_SECONDS} s{case}")


def _answered(sender: Any, question: Question, effort: Effort) -> Cell:
    """Send the cell with the cases that failed; an exception of torch's may not survive a pipe."""
    under_way.set(sender.send)
    cell, refuted = tried(question, effort)
    sender.send((cell, refuted and (refuted.failures, refuted.cases)))
    return cell


def _joined(answer: Any) -> Answer:
    cell, refuted = answer
    return cell, Refuted(*refuted) if refuted else None


def _secluded() -> None:
    """Leave an interrupt to the parent, and its output, which may be JSON, alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)


def _forked(question: Question, effort: Effort) -> Answer:
    """Where no device is at stake a fork does, which starts at once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_fork, args=(sender, question, effort))
    with warnings.catch_warnings():
        # The fork runs a single thread, and takes no lock that another may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()
    try:
        return _joined(_received(receiver, process))
    finally:
        process.kill()  # It has answered; a thread that a kernel left behind may hold it up.
        process.join()


def _in_fork(sender: Any, question: Question, effort: Effort) -> None:
    _secluded()
    torch.set_num_threads(1)  # The pool of the parent's threads is not here.
    _answered(sender, question, effort)


@attrs.frozen(eq=False)
class _Server:
    """A fresh process that answers until a kernel ends it or spoils its device."""

    process: Any
    pipe: Any

    def ask(self, question: Question, effort: Effort) -> Answer:
        device = str(question.device)
        self.pipe.send((question.op, question.kernel, question.check, device, effort))
        try:
            answer, healthy = _joined(_received(self.pipe, self.process)), self.pipe.recv()
        except BaseException:
            self.stop()
            raise
        if not healthy:
            self.stop()
        return answer

    def stop(self) -> None:
        _started.cache_clear()
        self.process.kill()


def _server() -> _Server:
    found = _started()
    if found.process.is_alive():
        return found
    _started.cache_clear()
    return _started()


@functools.cache
def _started() -> _Server:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, simulation()), daemon=True)
    process.start()
    theirs.close()
    try:
        _received(ours, process)
    except _Died as error:
        raise BackendError(f"the process that is to run the checks {error}") from None
    return _Server(process, ours)


def _serve(pipe: Any, simulated: Simulation | None) -> None:
    _secluded()
    faulthandler.enable()
    if simulated is not None:
        simulate(**attrs.asdict(simulated))
    pipe.send(True)
    healthy = True
    while healthy:
        op, kernel, check, device, effort = pipe.recv()
        backend = kernel.partition(":")[0]
        asked = questions(backend, find_device(device), None if op == DEVICE else [op])
        (question,) = [q for q in asked if (q.op, q.kernel, q.check) == (op, kernel, check)]
        refuted = _answered(pipe, question, effort).status is Status.REFUTED
        healthy = not (refuted and _spoilt(question))
        pipe.send(healthy)


def _spoilt(question: Question) -> bool:
    """Whether the device may answer wrongly from now on: after a bad capture or a wrong address."""
    if question.isolated or not question.device.accelerator:
        return question.device.accelerator
    try:
        return bool(torch.ones(1, device=str(question.device)).to(HOST) != 1)
    except RuntimeError:
        return True
