"""Other libraries' kernels for the same calls, where they are installed."""

from __future__ import annotations

from peers import attention, elementwise, experts, products, router, sampling
from peers.registry import DoesNotFit, Peer, peers

__all__ = [
    "DoesNotFit",
    "Peer",
    "attention",
    "elementwise",
    "experts",
    "peers",
    "products",
    "router",
    "sampling",
]
