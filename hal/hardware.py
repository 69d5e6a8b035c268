"""What is known of a device: frozen facts that backends probe."""

from __future__ import annotations

import enum

import attrs
from attrs.validators import deep_iterable, instance_of, optional

__all__ = ["Capability", "Device"]


class Capability(enum.Enum):
    """What an engine asks for before it switches a feature on.

    Example:
        >>> hal.Capability("graph_capture")
        <Capability.GRAPH_CAPTURE: 'graph_capture'>
    """

    PDL = "pdl"
    """Programmatic dependent launch."""
    GRAPH_CAPTURE = "graph_capture"
    """Capture into a device graph and replay."""
    FAKE_KERNELS = "fake_kernels"
    """Shapes without data: FakeTensor, ``torch.export``."""
    COMPILE = "compile"
    """``torch.compile`` with code generation."""
    TRITON = "triton"
    """Triton kernels compile and run."""
    FP8 = "fp8"
    """Tensors of ``float8_e4m3fn`` and ``float8_e5m2`` can be made and converted."""
    BF16 = "bf16"
    """Arithmetic on ``bfloat16``."""


@attrs.frozen
class Device:
    """A device as its backend describes it; what nobody stated is None.

    Attributes:
        type: torch's name of the kind of device.
        index: The number of the device, None where there is only one and torch does not count.
        name: The product's name.
        vendor: The vendor's name.
        arch: The vendor's architecture number, such as 90.
        memory: Bytes of device memory.
        multiprocessors: The number of multiprocessors.
        warp_size: Threads that execute together.
        accelerator: False for the host processor.
        max_graphs: How many captured graphs a process can hold; None where no limit is known.
        simulated: Whether it is one of ``hal.testing.simulated``, of which nothing is proven that
            would hold for hardware.
        capabilities: What the backends claim for it.

    Example:
        >>> hal.Device("cpu", name="Example").capabilities
        frozenset()
    """

    type: str = attrs.field(validator=instance_of(str))
    index: int | None = attrs.field(default=None, validator=optional(instance_of(int)))
    name: str = "unknown"
    vendor: str | None = None
    arch: int | None = None
    memory: int | None = None
    multiprocessors: int | None = None
    warp_size: int | None = None
    accelerator: bool = True
    max_graphs: int | None = None
    simulated: bool = False
    capabilities: frozenset[Capability] = attrs.field(
        default=frozenset(), converter=frozenset, validator=deep_iterable(instance_of(Capability))
    )

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def to_dict(self) -> dict[str, object]:
        """The facts as plain data, capabilities by name."""
        facts = attrs.asdict(self, recurse=False)
        facts["capabilities"] = sorted(capability.value for capability in self.capabilities)
        return facts
