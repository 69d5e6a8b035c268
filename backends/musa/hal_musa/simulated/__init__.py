"""What Moore Threads' software looks like on a simulated device: torch_musa, MATE, sgl_kernel.

``face(card)`` is what ``hal.testing.simulated.simulate("musa", card)`` asks for, and installs
torch_musa alone. MATE and sgl_kernel are stand-ins, which ``import mate`` and ``import sgl_kernel``
find where they were asked for and nowhere else: by the card's name, ``"S5000+mate+sgl_kernel"``,
for a process by ``add("mate")``, for a test by ``libraries("mate")``, which takes others away.

Schemas, signatures, constraints and faults are those of torch_musa 2.7.1, MATE 0.2.2 and
SGLang's sgl-kernel of May 2026, read in their sources. Numbers are computed in float32 on the host,
with one rounding at the end. Nothing here ran on hardware, and nothing here says how fast or how
precise the hardware is; what a source leaves open is said where it is decided.

There are, of torch_musa: the operators of ``schemas.SCHEMAS``, ``_scaled_mm``, and the ways of
``rms_norm`` and ``scaled_dot_product_attention`` to them. Of MATE: attention over ragged and paged
keys and its scheduler metadata, the fused gate, dense, masked and ragged products, dense MLA
decode. Of sgl_kernel: ``sgl_schemas.SCHEMAS``. Left out: MATE's sage attention, gated delta rule,
hash routing, hyper connections, sparse MLA and products ragged in k; sgl_kernel's collectives,
speculation trees, cache transfers, GGUF and AWQ.
"""

from __future__ import annotations

from hal_musa.simulated.cards import CARDS, Card, Properties, card_named
from hal_musa.simulated.face import face
from hal_musa.simulated.shelf import add, libraries

__all__ = ["CARDS", "Card", "Properties", "add", "card_named", "face", "libraries"]
