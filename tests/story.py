"""All that a BFF does, in one go: what /metrics then shows, and what it must not show."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Self

import httpx2
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.settings import Settings
from tests.callbacks.toss import AUTHORIZED, UNLINK
from tests.conftest import settings_for
from tests.payments.shop import Shop
from tests.purchases.shop import SKU, grant, store
from tests.scenarios import MINI_APP_ADDRESS, Bff

PERSON = {"name": "김토스", "phone": "01012345678", "birthday": "19930324"}


@dataclass(frozen=True)
class Shown:
    """What /metrics has answered."""

    text: str
    families: Mapping[str, Metric]

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(text, {family.name: family for family in text_string_to_metric_families(text)})

    def value(self, name: str, **labels: str) -> float | None:
        """The sum over the series that carry these labels; None if there is none."""
        found = [
            sample.value
            for sample in self.samples()
            if sample.name == name
            if labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    def samples(self) -> Iterator:
        return (sample for family in self.families.values() for sample in family.samples)

    def names(self) -> dict[str, list[dict[str, str]]]:
        """Every name that can be asked for, also of what has not happened yet, with the labels of its series."""
        names = defaultdict(list)
        for family in self.families.values():
            names[family.name + "_total" if family.type == "counter" else family.name] += []
        for sample in self.samples():
            names[sample.name].append(sample.labels)
        return names


def observed(settings: Settings) -> Settings:
    """Whoever calls may read the metrics."""
    listed = {"metrics_allowlist": (ip_network(f"{MINI_APP_ADDRESS}/32"),)}
    return settings.model_copy(update={"network": settings.network.model_copy(update=listed)})


def observed_settings(backend, sandbox) -> Settings:
    return observed(settings_for(backend, sandbox))


async def shown(bff: Bff) -> Shown:
    answer = await bff.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    return Shown.of(answer.text)


async def story(bff: Bff) -> set[str]:
    """Every secret, id and name that was part of it."""
    toss = bff.sandbox.state
    known = {*PERSON.values()}

    verification = await bff.start(**PERSON)
    toss.approve(verification.tx_id)
    await bff.status(verification)
    for _ in range(2):
        assert (await bff.result(verification)).status_code == 200
    headers = await bff.server_key()
    full = (await bff.as_partner("POST", verification, "/result", headers)).json()
    known |= {verification.tx_id, verification.token, headers["Authorization"][7:]}
    known |= {value for value in full["identity"].values() if value is not None}

    lost = await bff.completed()
    toss.order_fault("result", "reset_after")
    assert (await bff.result(lost)).status_code == 504
    known |= {lost.tx_id, lost.token}

    shop = await Shop.opened(bff)
    anonymous = await bff.log_in_anonymously()
    assert (await bff.post_code("never-issued-by-anybody")).status_code == 401
    known |= {
        shop.login.token,
        shop.login.user_id,
        shop.login.session_id,
        anonymous.token,
        "never-issued-by-anybody",
    }

    payment = await shop.paid()
    assert (await shop.refund(payment)).status_code == 200
    held = await shop.approved()
    toss.order_fault("pay_execute", "wrong_value", field="amount")
    await shop.execute(held)
    assert await shop.state(held) == "HELD"
    for one in (payment, held):
        known |= {one["orderNo"], one["payToken"]}

    order_id = store(bff).buy("man", SKU)
    assert (await grant(bff, shop.login, order_id)).status_code == 200
    known |= {order_id, SKU}

    for user_key in toss.mini_apps._links:
        known.add(str(user_key))
    await bff.http.post(UNLINK, json={"userKey": 443731103, "referrer": "UNLINK"}, headers=AUTHORIZED)
    await bff.http.post(UNLINK, json={"userKey": 443731103, "referrer": "UNLINK"}, headers={"Authorization": "x"})
    known |= {"443731103", AUTHORIZED["Authorization"][6:]}
    await odd_requests(bff, "a")
    return {str(one) for one in known}


async def odd_requests(bff: Bff, mark: str) -> None:
    """What nobody serves, named after `mark`."""
    for method in ("GET", "POST", "BREW", "OPTIONS", f"X{mark.upper()}"):
        for path in (
            f"/{mark}",
            f"/api/v1/{mark}?name={mark}",
            f"/api/v1/payments/{mark}",
            f"/callbacks/toss/{mark}",
        ):
            answer: httpx2.Response = await bff.http.request(method, path)
            assert answer.status_code >= 400 or method == "OPTIONS"
    assert (await bff.http.get("/metrics", headers={"X-Forwarded-For": mark})).status_code == 403
