"""sgl_kernel's operators for MUSA, with their kernels on a simulated device."""

from __future__ import annotations

import torch

from hal_musa.simulated import sgl_elementwise, sgl_musa, sgl_quant, sgl_routing
from hal_musa.simulated.host import register
from hal_musa.simulated.sgl_schemas import SCHEMAS

__all__ = ["registered"]


def registered() -> torch.library.Library:
    """Declare the operators; they last as long as the library is held."""
    places = (sgl_elementwise, sgl_musa, sgl_quant, sgl_routing)
    kernels = {name: kernel for place in places for name, kernel in place.KERNELS.items()}
    library = register("sgl_kernel", "FRAGMENT", SCHEMAS, kernels)
    for key in ("CPU", "PrivateUse1"):  # One registration for every device, as it is there.
        library.impl("apply_token_bitmask_inplace_cuda", sgl_routing.bitmask, key)
    return library
