"""Figure 10 for some seconds: descriptors and threads; ci/soak mixed has time for memory too."""

from __future__ import annotations

import pytest
from test_soak_of_failures import long_limit as long_limit
from test_soak_of_failures import soak

pytestmark = pytest.mark.once("of clients, and seconds long")


def test_in_short() -> None:
    pytest.importorskip("greenlet")
    soak("mixed", "--minutes", "0.05", "--rate", "60")
