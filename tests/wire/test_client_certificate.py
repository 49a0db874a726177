"""The client certificate as an operator meets it: doctor, /readyz, and the start in production."""

from datetime import UTC, datetime, timedelta

import pytest

from app.doctor import examine
from app.resources import open_resources
from app.settings import SettingsError
from tests.conftest import settings_for, without_callbacks
from tests.scenarios import Bff


def with_certificates(settings, sandbox, **toss):
    group = {"api_url": sandbox.partner_url, "ca_file": str(sandbox.ca_file), **toss}
    return settings.model_copy(update={"toss": type(settings.toss).model_validate(group)})


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "certificates"
    made.mkdir()
    return made


@pytest.fixture
def one(embedded, sandbox, folder):
    """Settings with a folder of client certificates, empty as yet."""
    return with_certificates(settings_for(embedded, sandbox), sandbox, certificate_folder=str(folder))


async def findings(settings) -> list[str]:
    async with open_resources(settings) as resources:
        return [
            f"{'FAULT' if found.is_fault else 'ok'} {found.what}"
            async for found in examine(resources)
            if found.check == "client certificate"
        ]


async def test_doctor_says_that_none_is_needed(embedded, sandbox):
    assert await findings(without_callbacks(settings_for(embedded, sandbox))) == [
        "ok none given; Toss Cert needs none"
    ]


async def test_doctor_proves_a_good_pair(one, sandbox, folder):
    sandbox.issue_client_certificate().write(folder)
    (found,) = await findings(one)
    assert found.startswith("ok my-granite-app (serial ")
    assert "ends in 389 days" in found


async def test_doctor_takes_a_pair_from_the_environment_and_tells_what_it_repaired(embedded, sandbox):
    pair = sandbox.issue_client_certificate()
    settings = with_certificates(
        settings_for(embedded, sandbox),
        sandbox,
        certificate_pem=pair.public_crt.replace("\n", "\\n"),
        key_pem=pair.private_key,
    )
    repaired, used = await findings(settings)
    assert "repaired while reading" in repaired
    assert used.startswith("ok my-granite-app")


@pytest.mark.parametrize(
    ("issue", "expected"),
    [
        ({"days_left": -1}, "expired"),
        ({"days_left": 5}, "ends in"),
    ],
)
async def test_doctor_finds_a_pair_that_has_ended_or_soon_will(one, sandbox, folder, issue, expected):
    sandbox.issue_client_certificate(**issue).write(folder)
    assert [found for found in await findings(one) if found.startswith("FAULT") and expected in found]


async def test_doctor_finds_a_pair_that_toss_refuses(one, sandbox, folder):
    pair = sandbox.issue_client_certificate()
    pair.write(folder)
    sandbox.revoke(pair.serial)
    found = await findings(one)
    assert [text for text in found if text.startswith("FAULT") and "refuse" in text], found


async def test_readyz_warns_of_an_end_that_is_near_and_of_a_bad_pair(one, sandbox, folder):
    sandbox.issue_client_certificate().write(folder, "good")
    async with Bff.running(one, sandbox) as bff:
        await bff.resources.partner_transport.keeper.look()
        assert (await bff.http.get("/readyz")).json() == {
            "status": "ready",
            "database": "ok",
            "sharedState": "ok",
            "clientCertificate": "ok",
        }
        (folder / "bad_public.crt").write_text("not a certificate")
        await bff.resources.partner_transport.keeper.look()
        degraded = await bff.http.get("/readyz")
        assert (degraded.status_code, degraded.json()["clientCertificate"]) == (200, "alarm")
        assert degraded.json()["status"] == "degraded"
        (folder / "bad_public.crt").unlink()
        bff.clock.advance(days=365)
        await bff.resources.partner_transport.keeper.look()
        assert (await bff.http.get("/readyz")).json()["clientCertificate"] == "expires_soon"


@pytest.mark.parametrize("days_left", [None, -1])
async def test_production_does_not_start_without_a_usable_pair(one, sandbox, folder, days_left):
    """Nothing lies there, or only one that has expired (G14)."""
    if days_left is not None:
        sandbox.issue_client_certificate(days_left=days_left).write(folder)
    production = one.model_copy(update={"environment": "production"})
    with pytest.raises(SettingsError) as caught:
        async with open_resources(production, clock=lambda: datetime.now(UTC) + timedelta(0)):
            pass
    assert all(fault.startswith("BFF_TOSS (client certificate)") for fault in caught.value.faults)
    assert caught.value.faults
