from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from driver.stand_in import Driver


@pytest.fixture
def driver() -> Iterator[Driver]:
    """The stand-in driver; everything is given back at the end, nothing was done that a driver forbids."""
    driver = Driver()
    gc.freeze()  # what was there before need not be looked through for what the test left
    yield driver
    driver.repair()
    driver.assert_all_freed()
    gc.unfreeze()
