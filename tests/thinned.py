"""Which of many alike are tested while one works on something; the others are marked as long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["thinned"]


def thinned(values: Iterable[Any], every: int) -> list[Any]:
    """Each so-manieth as it is; those between as parameters that ``scripts/test --all`` has."""
    long = pytest.mark.long
    return [pytest.param(v, marks=long if i % every else ()) for i, v in enumerate(values)]
