"""A user who has logged in, in front of the BFF."""

import pytest

from tests.payments.shop import Shop


@pytest.fixture
async def shop(bff) -> Shop:
    return await Shop.opened(bff)
