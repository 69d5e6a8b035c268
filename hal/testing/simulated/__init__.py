"""An accelerator on host memory: a device of any name, for tests without hardware."""

from hal.testing.simulated.face import Face

__all__ = ["Face"]
