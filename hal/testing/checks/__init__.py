"""The checks: each asks one question of a kernel."""

from hal.testing.checks import (
    capture,
    forms,
    gradients,
    overlap,
    properties,
    results,
    rows,
    shapes,
    statistics,
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
    "overlap",
    "properties",
    "results",
    "rows",
    "shapes",
    "statistics",
]

_ORDER = (
    *("numerics", "random", "laws", "statistics", "gradients"),
    *("purity", "written", "deterministic", "invariance", "offsets", "capture", "pdl"),
    *("fake", "symbolic", "opcheck", "out", "in-place", "condition", "refusals"),
)
for _name in _ORDER:
    CHECKS[_name] = CHECKS.pop(_name)
