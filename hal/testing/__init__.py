"""The conformance kit: what each operator has to do, and the checks that hold a backend to it.

``hal check NAME`` runs it, and so does ``pytest --pyargs hal.testing --hal-backend=NAME``. What a
backend knows to be missing it says by the hook ``hal_known_gaps``, with ``notimpl``, ``notyet`` and
``never``; a gap that has closed is an error, so that the marker goes.

A case that failed is made again by its name: ``hal.testing.cases.case("rms_norm", 15)`` is seed 15,
and ``hal.testing.subject.samples(hal.testing.records.RECORDS["rms_norm"])`` are the named samples,
each with its ``args`` and ``kwargs``.
"""

from hal.testing.gaps import Gap, never, notimpl, notyet

__all__ = ["Gap", "never", "notimpl", "notyet"]

if not __debug__:
    raise ImportError("hal.testing says what it finds by assertions, which python -O leaves out")
