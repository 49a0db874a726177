"""A user who has logged in, in front of the BFF."""

from datetime import timedelta

import pytest

from app.settings import Settings
from tests.conftest import settings_for
from tests.payments.shop import Shop


@pytest.fixture
def settings(backend, sandbox) -> Settings:
    """With time for fifty callers at once, who wait for one another at SQLite."""
    made = settings_for(backend, sandbox)
    patient = made.database.model_copy(update={"timeout": timedelta(seconds=30)})
    return made.model_copy(update={"database": patient})


@pytest.fixture
async def shop(bff) -> Shop:
    return await Shop.opened(bff)
