"""A backend from outside: a few operators on the host, served by torch's own functions."""

from __future__ import annotations

from hal import Backend, Capability, Device, Kernel, hookimpl

backend = Backend(api=1, torch=">=2.7", devices=("cpu",))


@hookimpl
def hal_capabilities(device: Device) -> set[Capability]:
    """What is claimed adds to the claims of others; what no other has is true of no host."""
    del device
    return {Capability.BF16}


@hookimpl
def silu_and_mul(device: Device) -> Kernel:
    """Serves every call, and claims that a row's bits do not depend on the other rows."""
    del device
    from hal_loopback import kernels  # What may be slow or missing is imported where it is offered.

    return Kernel(fn=kernels.silu_and_mul, name="torch", deterministic=True, batch_invariant=True)


@hookimpl
def rms_norm(device: Device) -> Kernel:
    """Serves every call."""
    del device
    from hal_loopback import kernels

    return Kernel(fn=kernels.rms_norm, name="torch", deterministic=True)


@hookimpl
def fused_add_rms_norm(device: Device) -> Kernel:
    """Serves float32, in place without a temporary for the sum."""
    del device
    from hal_loopback import kernels

    return Kernel(
        fn=kernels.fused_add_rms_norm,
        inplace=kernels.fused_add_rms_norm_,
        supports=kernels.fused_add_rms_norm_supports,
        name="torch",
        deterministic=True,
    )


@hookimpl
def softmax(device: Device) -> Kernel:
    """Serves float32 with one temperature for all rows."""
    del device
    from hal_loopback import kernels

    return Kernel(
        fn=kernels.softmax, supports=kernels.softmax_supports, name="torch", deterministic=True
    )
