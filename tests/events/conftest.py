"""A BFF with a partner's server to tell."""

from collections.abc import AsyncIterator

import pytest

from app.settings import Settings
from tests.conftest import settings_for
from tests.events.partner import PartnerServer, partner_server, with_events


@pytest.fixture
async def partner() -> AsyncIterator[PartnerServer]:
    async with partner_server() as server:
        yield server


@pytest.fixture
def settings(backend, sandbox, partner) -> Settings:
    return with_events(settings_for(backend, sandbox), partner.url)
