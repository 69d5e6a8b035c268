"""A stand-in for MATE 0.2.2: importable anywhere, its functions for capability 3.1 alone."""

from __future__ import annotations

import importlib

from hal_musa.simulated.cards import arch

__version__ = "0.2.2"

_PLACES = {
    "flash_attn_varlen_func": "mha_interface",
    "flash_attn_with_kvcache": "mha_interface",
    "get_scheduler_metadata": "mha_interface",
    "flash_mla_with_kvcache": "flashmla",
    "get_mla_metadata": "flashmla",
    "moe_fused_gate": "moe_fused_gate",
}
_MODULES = {"deep_gemm", "flashmla", "gemm", "mha_interface"}


def __getattr__(name: str) -> object:
    """Load what is asked for, which compiles it: there is nothing to compile for another card.

    Raises:
        AttributeError: MATE has nothing of that name.
        RuntimeError: The card is no MP31. What MATE itself raises there is not known.
    """
    if name not in _MODULES and name not in _PLACES:
        raise AttributeError(f"module 'mate' has no attribute {name!r}")
    if arch() != 31:
        raise RuntimeError(f"mate.{name} is for MP31, and this device is MP{arch()}")
    module = importlib.import_module(f"mate.{_PLACES.get(name, name)}")
    found = module if name in _MODULES else getattr(module, name)
    globals()[name] = found
    return found
