"""The experts of a mixture, for which MATE has products and hal calls none of them."""

from __future__ import annotations

from hal.ops.experts import fused_experts
from hal_musa.libraries import never

__all__ = ["OFFERS"]

# Measured with torch's grouped product on an H100, which rounds at the same places: 3.7e-3.
_ROUNDED = (
    "MATE's ragged and masked products round gate, up and the parts of each expert to 16 bits, "
    "where the op rounds once; that is off by 3.7e-3, and 2.5e-3 is allowed"
)

OFFERS = {
    "fused_experts": [never(fused_experts, "mate", _ROUNDED, "mate.gemm.ragged_m_moe_gemm_16bit")]
}
"""By op what there is."""
