"""Functions that run from captured graphs, on any device for which torch has them.

``capture`` takes a whole function, ``breakable`` and ``piecewise``, by way of a compiler, all of it
but some operators, which run as they are called. Each gives a ``Captured``, which is called as the
function is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.graphs.buckets import ladder
    from hal.graphs.captured import Captured, Stats
    from hal.graphs.device import weak_ref_tensor
    from hal.graphs.pads import Pad
    from hal.graphs.pieces import piecewise
    from hal.graphs.ways import breakable, capture

__all__ = [
    "Captured",
    "Pad",
    "Stats",
    "breakable",
    "capture",
    "ladder",
    "piecewise",
    "weak_ref_tensor",
]

_PLACES = {
    "Captured": "captured",
    "Pad": "pads",
    "Stats": "captured",
    "breakable": "ways",
    "capture": "ways",
    "ladder": "buckets",
    "piecewise": "pieces",
    "weak_ref_tensor": "device",
}


# Who captures nothing does not wait for it.
def __getattr__(name: str) -> Any:
    """Import what is used first, once."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found
