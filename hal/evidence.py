"""What has been proven of kernels and devices here, by files that ``hal check`` wrote."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import attrs
import torch

from hal.errors import InvalidInput
from hal.hardware import Capability, Device
from hal.settings import recorded, settings
from hal.version import __version__

__all__ = [
    "DEVICE",
    "FORMAT",
    "TRAITS",
    "Evidence",
    "evidence",
    "setting",
    "standing",
    "standing_of_device",
]

FORMAT = 1
"""The version of the form of the files."""

DEVICE = "(device)"
"""In place of an op, for what is claimed of a device."""

TRAITS = {
    "graph_safe": "capture",
    "deterministic": "deterministic",
    "batch_invariant": "invariance",
    "pdl": "pdl",
}
"""The check that proves a trait."""


def setting(device: Device) -> dict[str, Any]:
    """What evidence holds for: another of these, and a claim is a claim again.

    Of a simulated device it says so, and holds for no other.
    """
    kind = {"simulated": True} if device.simulated else {}
    return kind | {
        "hal": __version__,
        "torch": str(torch.__version__),
        "type": device.type,
        "name": device.name,
        "arch": device.arch,
    }


@attrs.frozen
class Evidence:
    """The cells of one run of ``hal check``.

    Attributes:
        backend: The backend that was asked.
        version: Its version.
        setting: The device and the versions that it was asked with.
        cells: By op, kernel and check the status in words.
    """

    backend: str
    version: str
    setting: dict[str, Any]
    cells: dict[tuple[str, str, str], str]

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Read a file.

        Raises:
            InvalidInput: It cannot be read, or is no evidence.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']}, not {FORMAT}")
            cells = {(c["op"], c["kernel"], c["check"]): c["status"] for c in data["cells"]}
            return cls(data["backend"]["name"], data["backend"]["version"], data["setting"], cells)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{path} is not evidence as `hal check --output` writes it"
            raise InvalidInput(f"{what}: {type(error).__name__}: {error}") from None


@functools.cache
def evidence() -> tuple[Evidence, ...]:
    """What HAL_EVIDENCE names, then what was recorded; read once.

    Raises:
        InvalidInput: A file is no evidence.
    """
    kept = sorted(Path(recorded()).glob("*.json"))
    return tuple(map(Evidence.read, [*map(Path, settings().evidence), *kept]))


def _status(device: Device, version: str | None, key: tuple[str, str, str]) -> str:
    here = setting(device)
    for each in evidence():
        fits = each.setting == here and version in (None, each.version)
        found = each.cells.get(key)
        if fits and found in ("proven", "refuted"):
            return found
    return "claimed"


def _said(device: Device, word: str) -> str:
    """What is proven on a simulated device is so there alone."""
    return f"{word} (simulated)" if device.simulated and word != "claimed" else word


def standing(op: str, kernel: str, version: str, device: Device, trait: str) -> str:
    """Whether a trait that a kernel claims is ``proven``, ``refuted`` or just ``claimed``.

    On a simulated device the first two have that behind them.
    """
    return _said(device, _status(device, version, (op, kernel, TRAITS[trait])))


def standing_of_device(device: Device, capability: Capability) -> str:
    """The same for a capability of a device, whoever's kernels were asked with it."""
    found = {
        _status(device, None, (DEVICE, f"{each.backend}:", capability.value)) for each in evidence()
    }
    return _said(device, next((word for word in ("refuted", "proven") if word in found), "claimed"))
