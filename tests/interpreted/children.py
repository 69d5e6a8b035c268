"""Trying in a fork what may end the process."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable


def in_child(body: Callable[[Callable[[str], None]], None], seconds: int = 240) -> str:
    """Run ``body`` in a fork: "", or how it ended and the last that it told."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        faulthandler.disable()
        signal.alarm(seconds)
        status = 1
        try:
            body(lambda text: os.write(write, f"\0{text}".encode()) and None)
            status = 0
        except BaseException:  # noqa: BLE001  # The parent hears of it.
            os.write(write, f"\0{traceback.format_exc()[-1500:]}".encode())
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        last = said.read().decode(errors="replace").rpartition("\0")[2]
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    return f"{signal.Signals(-code).name} in {last}" if code < 0 else last
