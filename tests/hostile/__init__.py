"""Backends that make trouble, by where they make it."""

from __future__ import annotations

from hostile import kernels, loading, offers
from hostile.record import OURS, WELL, Answers, Forks, Stranger, running

STRANGERS = [*loading.STRANGERS, *offers.STRANGERS, *kernels.STRANGERS]

__all__ = ["OURS", "STRANGERS", "WELL", "Answers", "Forks", "Stranger", "running"]
