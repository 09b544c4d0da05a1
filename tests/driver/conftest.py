from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from driver.stand_in import Driver


@pytest.fixture
def driver() -> Iterator[Driver]:
    """The stand-in driver; everything is given back at the end, nothing was done that a driver forbids."""
    driver = Driver()
    gc.freeze()  # what was there before need not be looked through for what the test left
    with warnings.catch_warnings():
        # pycuda warns of it in destructors. As an error it would be raised by what the thread runs next, whatever that
        # is: a thread that has just taken a lock then never gives it back. It is found as memory that is left.
        warnings.filterwarnings("default", ".* could not be cleaned up", UserWarning)
        yield driver
    driver.repair()
    driver.assert_all_freed()
    gc.unfreeze()
