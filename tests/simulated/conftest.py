"""A simulated card for all tests of this folder, before anything asks hal for devices."""

from __future__ import annotations

import os

from hal.testing.simulated import simulate

# Empty for the card that the backend takes as the usual one.
simulate("musa", os.environ.get("SIMULATED_CARD", "S5000") or None, devices=2)
