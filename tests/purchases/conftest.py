"""A BFF whose patience costs no time."""

import pytest

from app.settings import Settings
from tests.conftest import patient, settings_for
from tests.purchases.shop import Patience


@pytest.fixture
def settings(backend, sandbox) -> Settings:
    return patient(settings_for(backend, sandbox))


@pytest.fixture
def patience(bff) -> Patience:
    return Patience(bff)
