"""Which pages may call from a browser."""

import pytest

from tests.conftest import settings_for
from tests.scenarios import Bff

PATH = "/api/v1/cert/requests"


@pytest.fixture
def one(embedded, sandbox):
    settings = settings_for(embedded, sandbox)
    network = {"app_name": "my-granite-app", "allowed_origins": ["http://localhost:5173"]}
    return settings.model_copy(update={"network": type(settings.network).model_validate(network)})


async def allowed(bff, origin: str) -> bool:
    """Whether a browser would let a page of this origin call and read the answer."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type"
    preflight = await bff.http.options(PATH, headers=asked)
    answer = await bff.http.post(PATH, headers={"Origin": origin}, json={"x": 1})
    granted = {response.headers.get("access-control-allow-origin") for response in (preflight, answer)}
    assert "access-control-allow-credentials" not in answer.headers
    return granted == {origin}


@pytest.mark.parametrize(
    "origin",
    [
        "https://my-granite-app.apps.tossmini.com",
        "https://my-granite-app.private-apps.tossmini.com",
        "https://my-granite-app.web.tossmini.com",
        "https://my-granite-app.private-web.tossmini.com",
        "http://localhost:5173",
    ],
)
async def test_the_mini_apps_four_origins_and_configured_ones_may_call(one, sandbox, origin):
    async with Bff.running(one, sandbox) as bff:
        assert await allowed(bff, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://my-granite-app.apps.tossmini.com",
        "https://other.apps.tossmini.com",
        "https://my-granite-app.apps.tossmini.com.evil.example",
        "https://evil-my-granite-app.apps.tossmini.com",
        "https://my-granite-app.tossmini.com",
        "null",
    ],
)
async def test_no_other_page_may(one, sandbox, origin):
    async with Bff.running(one, sandbox) as bff:
        assert not await allowed(bff, origin)


async def test_without_a_name_no_page_may(embedded, sandbox):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        assert not await allowed(bff, "https://my-granite-app.apps.tossmini.com")


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "*", "A b", "-a", "a" * 64])
def test_a_name_that_is_none_is_refused(one, name):
    with pytest.raises(ValueError, match="app_name"):
        type(one.network).model_validate({"app_name": name})
