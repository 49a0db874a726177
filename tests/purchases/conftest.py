"""A BFF whose patience costs no time."""

import pytest

from tests.purchases.shop import Patience


@pytest.fixture
def patience(bff) -> Patience:
    return Patience(bff)
