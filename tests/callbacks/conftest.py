"""A BFF that Toss may call, with a handler that tests direct."""

import pytest

from app.settings import Settings
from tests.callbacks.toss import OTHER_VALUE, VALUE, Unlinks
from tests.conftest import settings_for


def with_callbacks(settings: Settings, **callbacks: object) -> Settings:
    """Toss may call from loopback and from where the in-process client stands."""
    given = {"login_unlink_auth": VALUE, "consent_withdrawal_auth": OTHER_VALUE} | callbacks
    allowlist = {"callback_allowlist": ["127.0.0.1/32", "192.0.2.10/32"]}
    return settings.model_copy(
        update={
            "callbacks": type(settings.callbacks).model_validate(given),
            "network": type(settings.network).model_validate(allowlist),
        }
    )


@pytest.fixture
def settings(backend, sandbox) -> Settings:
    return with_callbacks(settings_for(backend, sandbox))


@pytest.fixture
def unlinks(bff) -> Unlinks:
    made = Unlinks()
    made.serve(bff)
    return made
