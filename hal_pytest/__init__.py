"""The options of hal's conformance kit in pytest; a run without them loads nothing of hal.

pytest imports this in every run where hal is installed: it must not import hal, and torch with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_BACKEND = "--hal-backend"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say what the options are."""
    group = parser.getgroup("hal", "conformance of a backend of hal (pytest --pyargs hal.testing)")
    group.addoption(_BACKEND, metavar="NAME", help="the backend to hold to what it claims")
    group.addoption("--hal-device", metavar="DEVICE", help="where, in torch's notation")
    group.addoption("--hal-ops", metavar="OPS", help="some operators, separated by commas")
    group.addoption("--hal-checks", metavar="CHECKS", help="some checks, separated by commas")
    group.addoption("--hal-output", metavar="FILE", help="write the outcome as JSON here")
    group.addoption("--hal-quick", action="store_true", help="fewer samples for every check")
    group.addoption("--hal-thorough", action="store_true", help="every sample for every check")


def pytest_configure(config: pytest.Config) -> None:
    """Take part if a backend is named."""
    if config.getoption(_BACKEND):
        from hal.testing.session import Session

        config.pluginmanager.register(Session(config), "hal-session")
