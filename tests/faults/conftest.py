"""Faults compute little and compile much."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick(quick_compilation):
    """The simulator's compiled loop is not under test here."""
