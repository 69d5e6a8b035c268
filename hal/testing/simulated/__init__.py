"""An accelerator on host memory: a device of any name, for tests without hardware."""

from hal.testing.simulated.face import Face
from hal.testing.simulated.fallback import fallbacks, strict
from hal.testing.simulated.simulate import Simulation, simulate, simulation

__all__ = ["Face", "Simulation", "fallbacks", "simulate", "simulation", "strict"]
