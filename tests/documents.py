"""With what the documents and the examples are compared: the OpenAPI document, and settings from an environment."""

import os
from typing import Any

from app.main import create_app
from app.settings import PREFIX, Settings


def openapi_document() -> dict[str, Any]:
    """Of a service with the fewest settings."""
    return create_app(
        Settings.model_validate(
            {
                "vault": {"keys": {"k1": "A" * 43 + "="}, "active_key": "k1", "hash_key": "A" * 42 + "E="},
                "cert": {"client_id": "test_id", "client_secret": "test_secret"},
            }
        )
    ).openapi()


class Environment:
    """The `BFF_` variables of this process, and no others."""

    def __init__(self, monkeypatch) -> None:
        self._monkeypatch = monkeypatch

    def set(self, values: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
            self._monkeypatch.delenv(name)
        for name, value in values.items():
            self._monkeypatch.setenv(name, value)
