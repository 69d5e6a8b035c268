"""torch_musa's graphs: its names for a device's graphs, and the driver's limit to how many live."""

from __future__ import annotations

import weakref
from typing import Any

__all__ = ["LIVE_GRAPHS", "graphs_of"]

# An S5000's driver 3.3.5 made about 2043; the next capture ended in an illegal access.
LIVE_GRAPHS = 2048


def graphs_of(module: Any) -> dict[str, Any]:
    """``MUSAGraph`` and ``graph`` over the module's ``Graph`` and ``graph``."""
    live: weakref.WeakSet[Any] = weakref.WeakSet()

    class MUSAGraph(module.Graph):
        """A graph; of those that are captured and not reset, ``LIVE_GRAPHS`` may live."""

        def capture_end(self) -> None:
            super().capture_end()
            if len(live) >= LIVE_GRAPHS:
                super().reset()
                raise RuntimeError("MUSA error: an illegal memory access was encountered")
            live.add(self)

        def reset(self) -> None:
            live.discard(self)
            super().reset()

    class graph(module.graph):  # noqa: N801 - torch_musa's name for it
        """Capture into ``musa_graph``, which is the parameter's name."""

        def __init__(
            self,
            musa_graph: Any,
            pool: Any = None,
            stream: Any = None,
            capture_error_mode: str = "global",
        ) -> None:
            super().__init__(musa_graph, pool, stream, capture_error_mode)

    return {"MUSAGraph": MUSAGraph, "graph": graph}
