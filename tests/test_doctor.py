"""Every fault is found, explained in words, and comes with something to do; secrets stay out of it."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from pydantic import SecretStr

from app.doctor import Finding, examine
from app.resources import open_resources, utc_now
from tests.conftest import HASH_KEY, settings_for
from tests.hosts import Host, answering, tls_of
from tests.scenarios import Bff
from tests.servers import free_port
from tests.test_health import with_urls

TOKEN = b'{"access_token":"t0k3n","token_type":"Bearer","expires_in":3600}'


async def findings(settings, *, clock=utc_now) -> list[Finding]:
    async with open_resources(settings, clock=clock) as resources:
        found = [finding async for finding in examine(resources)]
    shown = " ".join(finding.check + finding.what + finding.fix for finding in found)
    for secret in (settings.cert.client_secret.get_secret_value(), HASH_KEY, "pa55word", "t0k3n", "eyJ"):
        assert secret not in shown
    return found


async def faults(settings, **how) -> dict[str, Finding]:
    """By check; each with something to do about it."""
    found = [finding for finding in await findings(settings, **how) if finding.is_fault]
    assert all(finding.what and finding.fix for finding in found)
    return {finding.check: finding for finding in found}


def with_cert(settings, **changes):
    group = type(settings.cert).model_validate(settings.cert.model_dump() | changes)
    return settings.model_copy(update={"cert": group})


@pytest.fixture
def one(embedded, sandbox):
    return settings_for(embedded, sandbox)


async def test_a_healthy_service_has_no_faults(settings, sandbox, backend):
    found = await findings(settings)
    assert [finding.check for finding in found if finding.is_fault] == []
    hosts = (sandbox.toss_url, sandbox.partner_url, sandbox.pay_url)
    port, partner_port, pay_port = (url.rpartition(":")[2] for url in hosts)
    assert [finding.check for finding in found] == [
        "settings",
        "database",
        "redis",
        "token endpoint",
        f"TLS to 127.0.0.1:{port}",
        "clock",
        "client certificate",
        f"TLS to 127.0.0.1:{partner_port}",
        f"TLS to 127.0.0.1:{pay_port}",
        "toss login",
        "toss pay",
        "toss pay",
        "in-app purchase",
        "events",
    ]
    assert found[-5].what == "decryption keys: 1; the unlink callback is served"
    assert "TLSv1.3" in found[4].what
    assert ("not configured" in found[2].what) == (backend.name == "embedded")
    # It asks Toss for a token and for nothing else.
    assert {record.call.value for record in sandbox.state.calls()} == {"token"}


async def test_an_authority_that_is_not_trusted_is_explained(one, tmp_path):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    found = await faults(with_cert(one, ca_file=str(tmp_path / "other.pem")))
    assert len(found) == 2
    for finding in found.values():
        assert "TLS failed" in finding.what
        assert "BFF_CERT__CA_FILE" in finding.fix


async def test_wrong_credentials_are_explained(one):
    found = await faults(with_cert(one, client_secret="wrong"))
    assert list(found) == ["token endpoint"]
    assert "invalid_client" in found["token endpoint"].what
    assert "BFF_CERT__CLIENT_ID" in found["token endpoint"].fix


async def test_a_scope_that_toss_does_not_know_is_explained(one):
    found = await faults(with_cert(one, scope="nonsense"))
    assert list(found) == ["token endpoint"]
    assert "BFF_CERT__SCOPE" in found["token endpoint"].fix


async def test_a_host_that_cannot_be_reached_is_explained(one):
    nobody = f"https://127.0.0.1:{free_port()}"
    found = await faults(with_cert(one, token_url=f"{nobody}/token", api_url=nobody))
    assert len(found) == 2
    for finding in found.values():
        assert finding.what.startswith("no connection")
        assert "117.52.3.222" in finding.fix


async def test_somebody_elses_answer_is_explained(one, sandbox):
    found = await faults(with_cert(one, token_url=f"{sandbox.toss_url}/no-token-here"))
    assert list(found) == ["token endpoint"]
    assert "BFF_CERT__TOKEN_URL" in found["token endpoint"].fix


async def test_a_lost_answer_is_explained(one, sandbox):
    sandbox.state.order_fault("token", "reset_after")
    found = await faults(one)
    assert list(found) == ["token endpoint"]
    assert found["token endpoint"].what.startswith("no answer")


async def test_a_database_without_tables_is_explained(one, tmp_path):
    found = await faults(with_urls(one, database=f"sqlite+aiosqlite:///{tmp_path}/new.db"))
    assert list(found) == ["database"]
    assert found["database"].fix == "Run: python -m app migrate"


async def test_a_database_that_is_away_is_explained(one):
    url = f"postgresql+asyncpg://bff:pa55word@127.0.0.1:{free_port()}/bff"
    found = await faults(with_urls(one, database=url))
    assert list(found) == ["database"]
    assert "BFF_DATABASE__URL" in found["database"].fix


async def test_a_redis_that_is_away_is_explained(one):
    found = await faults(with_urls(one, redis=f"redis://:pa55word@127.0.0.1:{free_port()}"))
    assert list(found) == ["redis"]
    assert "BFF_REDIS__URL" in found["redis"].fix


@pytest.mark.parametrize("seconds", [-3600, -15, 15, 3600])
async def test_a_clock_that_is_wrong_is_found(one, seconds):
    found = await faults(one, clock=lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    assert list(found) == ["clock"]
    assert "NTP" in found["clock"].fix


@pytest.mark.parametrize("seconds", [-2, 0, 2])
async def test_a_clock_that_is_a_little_off_is_no_fault(one, seconds):
    assert await faults(one, clock=lambda: datetime.now(UTC) + timedelta(seconds=seconds)) == {}


async def test_a_vault_key_that_stored_values_need_is_missed(settings, sandbox):
    async with Bff.running(settings, sandbox) as bff:
        await bff.result(await bff.completed())
    group = type(settings.vault).model_validate(
        {"keys": {"k2": HASH_KEY}, "active_key": "k2", "hash_key": HASH_KEY}
    )
    found = await faults(settings.model_copy(update={"vault": group}))
    assert list(found) == ["vault"]
    assert "k1" in found["vault"].what
    assert "reseal" in found["vault"].fix


@pytest.mark.parametrize(("days", "is_fault"), [(29, True), (31, False)])
async def test_a_certificate_of_the_other_side_that_ends_soon_is_found(one, tmp_path, days, is_fault):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = tls_of(ca, not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
    async with Host.running(answering(TOKEN), tls=tls) as host:
        url = host.url.removesuffix("/call")
        changed = with_cert(one, ca_file=str(tmp_path / "ca.pem"), token_url=f"{url}/token", api_url=url)
        found = await faults(changed)
    assert ([check.partition(" ")[0] for check in found] == ["TLS"]) is is_fault
    assert bool(found) is is_fault


async def test_several_faults_are_all_found_at_once(one):
    url = f"postgresql+asyncpg://bff:pa55word@127.0.0.1:{free_port()}/bff"
    broken = with_urls(
        with_cert(one, client_secret="wrong"), database=url, redis=f"redis://127.0.0.1:{free_port()}"
    )
    assert set(await faults(broken)) == {"database", "redis", "token endpoint"}


async def test_a_host_that_serves_both_addresses_is_looked_at_once(one):
    async with Host.running(answering(TOKEN)) as host:
        url = host.url.removesuffix("/call")
        await findings(with_cert(one, token_url=f"{url}/token", api_url=f"{url}/toss"))
    heads = [request.split()[1] for request in host.requests if request.startswith(b"HEAD")]
    assert heads == [b"/"]


async def test_what_toss_login_lacks_is_said_without_being_a_fault(one):
    bare = {"login": type(one.login)(), "callbacks": type(one.callbacks)()}
    (said,) = [each for each in await findings(one.model_copy(update=bare)) if each.check == "toss login"]
    assert not said.is_fault
    assert "userKey alone" in said.what
    assert "BFF_CALLBACKS__LOGIN_UNLINK_AUTH" in said.what


def with_pay(settings, *, pay: dict[str, object], billing: dict[str, object] | None = None, **toss):
    groups = {
        "pay": type(settings.pay).model_validate(pay),
        "billing": type(settings.billing).model_validate(billing or {}),
        "toss": type(settings.toss).model_validate(settings.toss.model_dump() | toss),
    }
    return settings.model_copy(update=groups)


async def of_pay(settings) -> list[tuple[bool, str]]:
    return [(each.is_fault, each.what) for each in await findings(settings) if each.check == "toss pay"]


async def test_what_toss_pay_has_and_lacks_is_said(one, sandbox, tmp_path):
    assert await of_pay(with_pay(one, pay={})) == [(False, "off (BFF_PAY__MODE is not set)")]
    bare = await of_pay(with_pay(one, pay={"mode": "test"}, pay_url=sandbox.partner_url))
    assert bare[0] == (False, "test: no money moves; recurring payment is off (BFF_BILLING__ENABLED)")
    assert "only orders of the partner's server" in bare[1][1]
    assert not bare[1][0]
    file = tmp_path / "catalogue.json"
    file.write_text(json.dumps({"products": {"tea": {"description": "차", "amount": 3000}}}))
    where = {"pay_url": sandbox.partner_url, "billing": {"enabled": True, "api_url": sandbox.partner_url}}
    full = with_pay(one, pay={"mode": "live", "catalogue_file": file}, **where)
    assert await of_pay(full) == [
        (False, "live: money moves; recurring payment is on"),
        (False, "the catalogue has 1 products"),
    ]


async def said(settings, check: str) -> str:
    [finding] = [each for each in await findings(settings) if each.check == check]
    assert not finding.is_fault
    return finding.what


async def test_what_in_app_purchase_has_and_lacks_is_said(one):
    unset = one.callbacks.model_copy(update={"iap_subscription_auth": None})
    missing = "does not exist (BFF_CALLBACKS__IAP_SUBSCRIPTION_AUTH is not set)"
    assert (await said(one.model_copy(update={"callbacks": unset}), "in-app purchase")).endswith(missing)
    served = unset.model_copy(update={"iap_subscription_auth": SecretStr("pa55word")})
    cycles = one.purchases.model_copy(update={"renewal_cycles": {"membership": "MONTHLY"}})
    both = one.model_copy(update={"callbacks": served, "purchases": cycles})
    assert (
        await said(both, "in-app purchase") == "subscriptions with a cycle: 1; the subscription callback is served"
    )
    bare = await said(one.model_copy(update={"toss": type(one.toss)()}), "in-app purchase")
    assert "no client certificate" in bare


async def test_where_events_go_is_said_without_path_and_secret(one):
    nowhere = one.events.model_copy(update={"url": None, "secrets": ()})
    kept = await said(one.model_copy(update={"events": nowhere}), "events")
    assert kept == "kept only (BFF_EVENTS__URL is not set)"
    there = {"url": "https://shop.example/pa55word", "secrets": (SecretStr("whsec_pa55word"),)}
    told = one.model_copy(update={"events": one.events.model_copy(update=there)})
    assert await said(told, "events") == "delivered to https://shop.example; secrets that sign: 1"


async def test_toss_pay_needs_a_client_certificate(one):
    bare = one.model_copy(update={"toss": type(one.toss)()})
    found = await faults(with_pay(bare, pay={"mode": "test"}))
    assert list(found) == ["toss pay"]
    assert "no client certificate" in found["toss pay"].what


async def test_each_host_of_the_partner_api_is_looked_at_once_and_only_if_it_is_used(one, sandbox):
    nobodys = [f"https://127.0.0.1:{free_port()}" for _ in range(2)]
    billing = {"enabled": True, "api_url": nobodys[1]}
    assert await faults(with_pay(one, pay={}, pay_url=nobodys[0])) == {}
    found = await faults(with_pay(one, pay={"mode": "test"}, pay_url=nobodys[0], billing=billing))
    assert set(found) == {f"TLS to {url.removeprefix('https://')}" for url in nobodys}
    for finding in found.values():
        assert finding.what.startswith("no connection")
        assert "117.52.3.192" in finding.fix
    same = {"enabled": True, "api_url": sandbox.partner_url}
    settings = with_pay(one, pay={"mode": "test"}, pay_url=sandbox.partner_url, billing=same)
    name = f"TLS to {sandbox.partner_url.removeprefix('https://')}"
    assert [finding.check for finding in await findings(settings)].count(name) == 1
