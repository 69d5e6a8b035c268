"""Functions that run from captured graphs, on any device for which torch has them.

``capture`` takes a whole function, ``breakable`` and ``piecewise``, by way of a compiler, all of it
but some operators, which run as they are called. Each gives a ``Captured``, which is called as the
function is.
"""

from hal.graphs.arguments import Pad
from hal.graphs.buckets import ladder
from hal.graphs.capture import breakable, capture
from hal.graphs.captured import Captured, Stats
from hal.graphs.device import weak_ref_tensor
from hal.graphs.piecewise import piecewise

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
