"""What the settings make of the partner's APIs: which of them there are, at which hosts, and on whose budget."""

import pytest

from app.metrics import Metrics
from app.resources import open_resources, partner_apis
from app.settings import BudgetSettings
from app.shared_state import InProcessState
from app.toss.errors import BudgetExhausted, TossRejected
from app.toss.partner import TossUser
from app.toss.transport import Answer
from tests.conftest import settings_for
from tests.toss.partners import Canned

LOGIN, PAY, BILLING = "https://login.example", "https://pay.example", "https://billing.example"
USER = TossUser(user_key=5)
NO = Answer(200, b'{"resultType":"FAIL","error":{"errorCode":"X"}}')


def with_money(settings, *, mode: str | None = "test", billing: bool = True, per_minute: int = 1000):
    changes = {
        "toss": {"api_url": LOGIN, "pay_url": PAY},
        "pay": {"mode": mode},
        "billing": {"enabled": billing, "api_url": BILLING, "path_prefix": "/prefix"},
    }
    groups = {
        name: type(group).model_validate(group.model_dump() | changes[name])
        for name in changes
        for group in [getattr(settings, name)]
    }
    budget = BudgetSettings(per_minute=per_minute, own_share=0, head_room=0)
    return settings.model_copy(update={**groups, "budget": budget})


@pytest.fixture
def one(embedded, sandbox):
    return settings_for(embedded, sandbox)


async def test_all_hosts_spend_one_budget(one):
    """Whether Toss Pay's host has its own is open (reference 19.12)."""
    transport = Canned(*[NO] * 12)
    apis = partner_apis(
        with_money(one, per_minute=10), transport=transport, shared_state=InProcessState(), metrics=Metrics()
    )
    outcomes = []
    for _ in range(3):
        for call in (
            apis.login.verify_anon_key("h4sh"),
            apis.iap.order_status("o", user=USER),
            apis.pay.execute(USER, order_no="n", pay_token="t"),
            apis.billing.remove_key(USER, wrapped_token="w"),
        ):
            with pytest.raises((TossRejected, BudgetExhausted)) as caught:
                await call
            outcomes.append(caught.type)
    assert outcomes == [TossRejected] * 10 + [BudgetExhausted] * 2
    partner = "api-partner/v1/apps-in-toss"
    assert [url for _, url in transport.sent[:4]] == [
        f"{LOGIN}/{partner}/users/anon-key/verify",
        f"{LOGIN}/{partner}/order/get-order-status",
        f"{PAY}/{partner}/pay/execute-payment",
        f"{BILLING}/prefix/remove-billing-key",
    ]


@pytest.mark.parametrize(
    ("mode", "billing", "hosts"),
    [
        (None, False, (LOGIN,)),
        ("test", False, (LOGIN, PAY)),
        ("live", True, (LOGIN, PAY, BILLING)),
    ],
)
async def test_there_is_what_is_configured_and_each_host_in_use_has_to_take_the_certificate(
    one, mode, billing, hosts
):
    settings = with_money(one, mode=mode, billing=billing)
    async with open_resources(settings) as resources:
        assert resources.partner_transport.probe_urls == hosts
        apis = partner_apis(
            settings, transport=resources.partner_transport, shared_state=resources.shared_state, metrics=Metrics()
        )
    assert (apis.login is None, apis.iap is None) == (False, False)
    assert (apis.pay is not None, apis.billing is not None) == (mode is not None, billing)


async def test_one_host_for_everything_is_asked_once(one):
    settings = with_money(one)
    toss = settings.toss.model_copy(update={"pay_url": LOGIN})
    billing = settings.billing.model_copy(update={"api_url": LOGIN})
    async with open_resources(settings.model_copy(update={"toss": toss, "billing": billing})) as resources:
        assert resources.partner_transport.probe_urls == (LOGIN,)


def test_without_a_client_certificate_there_is_nothing(one):
    apis = partner_apis(with_money(one), transport=None, shared_state=InProcessState(), metrics=Metrics())
    assert (apis.login, apis.iap, apis.pay, apis.billing) == (None, None, None, None)


@pytest.mark.parametrize("mode", ["test", "live"])
async def test_test_mode_and_nothing_else_sends_test_payments(one, mode):
    sent = []

    class Noting(Canned):
        async def post_json(self, url, body, *, bearer, headers, admit):
            sent.append(body["isTestPayment"])
            return await super().post_json(url, body, bearer=bearer, headers=headers, admit=admit)

    apis = partner_apis(
        with_money(one, mode=mode), transport=Noting(NO, NO), shared_state=InProcessState(), metrics=Metrics()
    )
    for call in (
        apis.pay.execute(USER, order_no="n", pay_token="t"),
        apis.billing.create_key(USER, product_desc="x"),
    ):
        with pytest.raises(TossRejected):
            await call
    assert sent == [mode == "test"] * 2
