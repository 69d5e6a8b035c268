"""These tests wait for Triton's interpreter, which is made to hurry."""

from __future__ import annotations

from interpreted.quick import hasten

hasten()
