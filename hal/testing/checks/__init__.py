"""The checks: each asks one question of a kernel."""

from hal.testing.checks import (
    capture,  # isort: skip
    forms,  # isort: skip
    gradients,  # isort: skip
    properties,  # isort: skip
    results,  # isort: skip  # The order of these imports is that of the columns.
    rows,  # isort: skip
    shapes,  # isort: skip
    statistics,  # isort: skip
)
from hal.testing.checks.check import CHECKS, THOROUGH, Check, Effort

__all__ = [
    "CHECKS",
    "THOROUGH",
    "Check",
    "Effort",
    "capture",
    "forms",
    "gradients",
    "properties",
    "results",
    "rows",
    "shapes",
    "statistics",
]
