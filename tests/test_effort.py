"""What a quick run of the kit leaves out, and what it may not."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hal.testing.checks import QUICK, Effort
from hal.testing.checks.check import some
from hal.testing.record import Sample
from hal.testing.records import RECORDS
from hal.testing.subject import samples


def dtypes(given: Iterable[Sample]) -> set[object]:
    return {value.dtype for sample in given for value in sample.args if isinstance(value, Tensor)}


def test_quick_is_less_of_everything_and_leaves_no_dtype_out() -> None:
    usual, chosen = Effort(), 0
    assert QUICK.every > usual.every
    assert QUICK.samples > usual.samples
    assert QUICK.cases < usual.cases
    assert QUICK.rows < usual.rows
    for record in RECORDS.values():
        every, quick = samples(record), some(samples(record), QUICK.samples)
        assert dtypes(quick) == dtypes(every), record.op
        assert dtypes(some(every, QUICK.every)) == dtypes(every), record.op
        chosen += len(quick)
    assert chosen >= 2_000
