"""A child process for a check that may end its process: by a wrong address, or a spoilt device."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import warnings
from multiprocessing.connection import Connection
from typing import Any

import attrs
import torch

from hal.probe import device as find_device
from hal.testing.attempt import tried
from hal.testing.checks import Effort
from hal.testing.outcome import Cell, Refuted, Status
from hal.testing.questions import Question, questions

__all__ = ["ask"]

# Nothing here takes so long; a kernel that waits for itself would wait for ever.
_SECONDS = 300

Answer = tuple[Cell, "Refuted | None"]


def ask(question: Question, effort: Effort) -> Answer:
    """Run a check in a child; if the child dies, the claim is refuted by that."""
    try:
        if question.device.accelerator:
            return _server().ask(question, effort)
        return _forked(question, effort)
    except _Died as error:
        _server.cache_clear()
        reason = f"the process {error}"
        return Cell(question.op, question.kernel, question.check, Status.REFUTED, 0, reason), None


class _Died(Exception):
    """A child did not answer, and how it ended."""


def _received(receiver: Any, process: Any) -> Any:
    try:
        if receiver.poll(_SECONDS):
            return receiver.recv()
        process.kill()
        raise _Died(f"did not end within {_SECONDS} s")
    except EOFError:
        process.join()
        code = process.exitcode
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise _Died(how) from None


def _answered(sender: Connection, question: Question, effort: Effort) -> bool:
    """Send the cell with the cases that failed; an exception of torch's may not survive a pipe."""
    cell, refuted = tried(question, effort)
    sender.send((cell, refuted and (refuted.failures, refuted.cases)))
    return cell.status is not Status.REFUTED


def _joined(answer: Any) -> Answer:
    cell, refuted = answer
    return cell, Refuted(*refuted) if refuted else None


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
        process.join()


def _in_fork(sender: Connection, question: Question, effort: Effort) -> None:
    torch.set_num_threads(1)  # The pool of the parent's threads is not here.
    _answered(sender, question, effort)


@attrs.frozen(eq=False)
class _Server:
    """A fresh process that answers until a claim is refuted, which may have spoilt its device."""

    process: Any
    pipe: Any

    def ask(self, question: Question, effort: Effort) -> Answer:
        device = str(question.device)
        self.pipe.send((question.op, question.kernel, question.check, device, effort))
        answer = _joined(_received(self.pipe, self.process))
        if answer[0].status is Status.REFUTED:
            _server.cache_clear()
        return answer


@functools.cache
def _server() -> _Server:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Server(process, ours)


def _serve(pipe: Any) -> None:
    healthy = True
    while healthy:
        op, kernel, check, device, effort = pipe.recv()
        backend = kernel.partition(":")[0]
        asked = questions(backend, find_device(device), [op], [check])
        (question,) = [each for each in asked if each.kernel == kernel]
        healthy = _answered(pipe, question, effort)
