"""A user who has logged in, in front of the BFF."""

import pytest

from app.settings import Settings
from tests.conftest import patient, settings_for
from tests.payments.shop import Shop


@pytest.fixture
def settings(backend, sandbox) -> Settings:
    return patient(settings_for(backend, sandbox))


@pytest.fixture
async def shop(bff) -> Shop:
    return await Shop.opened(bff)
