"""torch_musa's graphs: its names for a device's graphs, and how many of them a driver holds."""

from __future__ import annotations

from typing import Any

__all__ = ["LIVE_GRAPHS", "graphs_of"]

# An S5000's driver 3.3.5 made about 2043, and failed at the end of the next capture.
LIVE_GRAPHS = 2043


def graphs_of(module: Any) -> dict[str, Any]:
    """``MUSAGraph`` and ``graph`` over the module's ``Graph`` and ``graph``."""

    class MUSAGraph(module.Graph):
        """A graph; of those that are captured and not reset, ``limit`` may live."""

        limit = LIVE_GRAPHS

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
