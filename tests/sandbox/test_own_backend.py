"""The stand-in for the team's backend: it takes signed events only, and knows a repetition."""

import json
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette

from sandbox.own_backend import EVENTS_PATH, OwnBackend
from tests.sandbox.conftest import EVENTS_SECRET


@pytest.fixture
def backend(sandbox):
    sandbox.own_backend.forget()
    return sandbox


def signed(body, *, event_id="evt_1", at=None, secret=EVENTS_SECRET):
    moment = at or datetime.now(UTC)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(msg_id=event_id, timestamp=moment, data=body),
    }


def test_events_are_kept_once_and_shown(backend):
    body = json.dumps({"type": "payment.paid", "data": {"orderNo": "o"}})
    with httpx2.Client(trust_env=False) as client:
        for event_id in ("evt_1", "evt_2", "evt_1"):
            answer = client.post(backend.events_url, content=body, headers=signed(body, event_id=event_id))
            assert answer.status_code == 204
        shown = client.get(backend.events_url).json()
    assert [(event["id"], event["times"]) for event in shown] == [("evt_1", 2), ("evt_2", 1)]
    assert shown[0]["event"] == json.loads(body)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed("{}", secret="whsec_" + "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"),
        signed('{"other": 1}'),
        signed("{}", at=datetime.now(UTC) - timedelta(minutes=6)),
        signed("{}") | {"webhook-signature": "nonsense"},
    ],
)
def test_unsigned_forged_and_old_events_are_refused(backend, headers):
    assert httpx2.post(backend.events_url, content="{}", headers=headers, trust_env=False).status_code == 401
    assert backend.own_backend.events() == []


def test_only_objects_are_events(backend):
    headers = signed("[]")
    assert httpx2.post(backend.events_url, content="[]", headers=headers, trust_env=False).status_code == 401


async def test_without_a_secret_nothing_is_taken():
    app = Starlette(routes=OwnBackend(None).routes())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://own") as client:
        assert (await client.post(EVENTS_PATH, content="{}", headers=signed("{}"))).status_code == 401


def test_the_last_hundred_are_kept():
    own = OwnBackend(EVENTS_SECRET)
    for number in range(101):
        own._note(str(number), {})
    assert [event.id for event in own.events()] == [str(number) for number in range(1, 101)]
