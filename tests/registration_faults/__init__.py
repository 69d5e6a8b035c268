"""The catalogue of planted faults of registration."""

from registration_faults import declared, refused, registered, returned, written
from registration_faults.plant import Fault, planted

__all__ = ["FAULTS", "Fault", "planted"]

FAULTS: list[Fault] = [
    *declared.FAULTS,
    *returned.FAULTS,
    *written.FAULTS,
    *refused.FAULTS,
    *registered.FAULTS,
]
"""Every fault, each with the check that has to see it."""
