"""The OpenAPI document that the guides and the examples are compared with."""

from typing import Any

from app.main import create_app
from app.settings import Settings


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
