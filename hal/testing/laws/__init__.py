"""Laws of the operators: what holds whatever they are given. They need hypothesis."""

from __future__ import annotations

from hal.testing.laws import activation, attention, matmul, moe, norm, quant, rows, sampling
from hal.testing.laws.law import Law, check_law

__all__ = ["LAWS", "Law", "check_law"]

FAMILIES = (activation, attention, matmul, moe, norm, quant, rows, sampling)
LAWS: list[Law] = [law for family in FAMILIES for law in family.LAWS]
