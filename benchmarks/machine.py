"""What figures belong to: a device, and the versions of what ran on it."""

from __future__ import annotations

import importlib.util
import subprocess

import torch

import hal

__all__ = ["machine"]


def _asked() -> dict[str, str]:
    query = "name,driver_version,clocks.sm,clocks.mem,power.draw"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(zip(query.split(","), said.stdout.split("\n")[0].split(", "), strict=False))


def machine() -> dict[str, str]:
    """The device by name, and versions."""
    facts = {"cuda": str(torch.version.cuda), **_asked()} if torch.cuda.is_available() else {}
    found = {"torch": str(torch.__version__), "hal": hal.__version__}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    return facts | found
