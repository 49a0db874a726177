"""The three calls of Toss Cert against the sandbox: what is sent, what is repeated, and what never is."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from app.toss.cert import PERSONAL_FIELDS, CertApi, CertEndpoints, RequestStatus, ResultAnswer, parse_instant
from app.toss.crypto import TOSS_PUBLIC_KEY, PublicKey, Session
from app.toss.errors import NotSent, OutcomeUnknown, TossRejected, Unintelligible
from app.toss.tokens import ServiceToken
from app.toss.transport import Transport
from tests.hosts import Host, answering, silence

PATH = "/api/v2/sign/user/auth/id"
NOW = datetime(2026, 3, 24, tzinfo=UTC)
PERSON = {"name": "김토스", "phone": "01012345678", "birthday": "19930324"}


class Tokens:
    """In the place of the token keeper: hands out what the sandbox takes, and notes what is refused."""

    def __init__(self, fetch) -> None:
        self._fetch = fetch
        self._token: ServiceToken | None = None
        self.gets = 0
        self.refused: list[str] = []

    async def get(self) -> ServiceToken:
        self.gets += 1
        if self._token is None:
            self._token = ServiceToken(await self._fetch(), fetched_at=NOW, expires_at=NOW + timedelta(hours=1))
        return self._token

    async def invalidate(self, token: ServiceToken) -> None:
        self.refused.append(token.value)
        self._token = None


@dataclass
class Rig:
    api: CertApi
    tokens: Tokens


@asynccontextmanager
async def api_at(url: str, fetch, *, ca_file=None, **changes) -> AsyncIterator[Rig]:
    limit = timedelta(seconds=10)
    usual = {
        "endpoints": CertEndpoints(*(f"{url}{PATH}/{call}" for call in ("request", "status", "result"))),
        "public_key": PublicKey.parse(TOSS_PUBLIC_KEY),
        "version": "v1",
        "request_url": "intoss://my-app",
        "trigger_type": "APP_SCHEME",
        "expire_seconds": None,
        "deadline": limit,
    }
    async with Transport(
        ca_file=ca_file, pool_size=4, connect_timeout=limit, read_timeout=changes.pop("read_timeout", limit)
    ) as transport:
        tokens = Tokens(fetch)
        yield Rig(CertApi(transport=transport, tokens=tokens, **usual | changes), tokens)


@asynccontextmanager
async def api_for(sandbox, **changes) -> AsyncIterator[Rig]:
    limit = timedelta(seconds=10)
    form = {
        "grant_type": "client_credentials",
        "scope": "ca",
        "client_id": sandbox.client_id,
        "client_secret": sandbox.client_secret,
    }
    async with Transport(
        ca_file=sandbox.ca_file, pool_size=1, connect_timeout=limit, read_timeout=limit
    ) as transport:

        async def fetch() -> str:
            return (await transport.post_form(sandbox.token_url, form)).plain()["access_token"]

        changes = {"public_key": PublicKey.parse(sandbox.public_key)} | changes
        async with api_at(sandbox.toss_url, fetch, ca_file=sandbox.ca_file, **changes) as rig:
            yield rig


@pytest.fixture
async def rig(sandbox) -> AsyncIterator[Rig]:
    async with api_for(sandbox) as rig:
        yield rig


@pytest.fixture
def api(rig) -> CertApi:
    return rig.api


async def approved(api: CertApi, sandbox, persona: str | None = None) -> str:
    tx_id = (await api.request_one_touch()).tx_id
    sandbox.state.approve(tx_id, persona)
    return tx_id


CALLS = {
    "request": lambda api, _tx_id: api.request_one_touch(),
    "personal": lambda api, _tx_id: api.request_personal(**PERSON),
    "status": lambda api, tx_id: api.status(tx_id),
    "result": lambda api, tx_id: api.result(tx_id),
}


def wire_name(call: str) -> str:
    return "request" if call == "personal" else call


# --- As documented ----------------------------------------------------------------------------------------


async def test_one_touch_sends_no_personal_data(api, sandbox):
    started = await api.request_one_touch()
    sent = sandbox.state.transaction(started.tx_id)
    assert (sent.request_type, sent.sent_person) == ("USER_NONE", None)
    assert started.requested_at == sent.requested_at.replace(microsecond=0)


async def test_personal_data_arrive_as_they_were_given(api, sandbox):
    started = await api.request_personal(**PERSON)
    sent = sandbox.state.transaction(started.tx_id)
    assert sent.request_type == "USER_PERSONAL"
    assert vars(sent.sent_person) == PERSON
    assert (started.app_scheme, started.android_app_uri, started.ios_app_uri) == (None, None, None)


async def test_a_verification_goes_through_its_states_to_a_result(api, sandbox):
    tx_id = (await api.request_one_touch()).tx_id
    assert await api.status(tx_id) is RequestStatus.REQUESTED
    sandbox.state.open(tx_id)
    assert await api.status(tx_id) is RequestStatus.IN_PROGRESS
    sandbox.state.approve(tx_id)
    assert await api.status(tx_id) is RequestStatus.COMPLETED

    opened = (await api.result(tx_id)).open()

    persona = sandbox.state.personas["test_person"]
    assert opened.personal == {
        "ci": persona.ci,
        "di": persona.di,
        "name": persona.name,
        "birthday": persona.birthday,
        "gender": persona.gender,
        "nationality": persona.nationality,
        "ageGroup": persona.age_group,
    }
    assert opened.unreadable == ()
    assert opened.signature.startswith("MII")
    assert opened.completed_at == sandbox.state.transaction(tx_id).completed_at.replace(microsecond=0)
    assert sandbox.state.transaction(tx_id).reads == 1


async def test_an_expired_request_says_so(api, sandbox):
    tx_id = (await api.request_one_touch()).tx_id
    sandbox.state.expire(tx_id)
    assert await api.status(tx_id) is RequestStatus.EXPIRED


@pytest.mark.parametrize("seconds", [None, 1, 1800])
async def test_the_life_of_a_request_is_sent_only_when_it_is_set(sandbox, seconds):
    async with api_for(sandbox, expire_seconds=seconds) as rig:
        for started in (await rig.api.request_one_touch(), await rig.api.request_personal(**PERSON)):
            life = sandbox.state.transaction(started.tx_id)
            assert (life.expires_at - life.requested_at).total_seconds() == (seconds or 600)


async def test_every_call_makes_a_session_of_its_own(api, sandbox):
    """The sandbox refuses a session that it has seen before."""
    for _ in range(2):
        await api.request_personal(**PERSON)
    tx_id = await approved(api, sandbox)
    sessions = {(await api.result(tx_id)).session.dump() for _ in range(2)}
    assert len(sessions) == 2


# --- Refusals ---------------------------------------------------------------------------------------------


async def test_the_code_of_a_refusal_is_kept_as_data(api, sandbox):
    tx_id = (await api.request_one_touch()).tx_id
    for order in ({"kind": "fail", "code": "CE9999", "http_status": 503}, {"kind": "fail_200", "code": "CE9998"}):
        sandbox.state.order_fault("status", **order)
        with pytest.raises(TossRejected) as caught:
            await api.status(tx_id)
        assert caught.value.error_code == order["code"]
        assert caught.value.http_status == order.get("http_status", 200)
    assert sandbox.state.count("status") == 2


@pytest.mark.parametrize(
    ("call", "code"),
    [("status", "CE3100"), ("result", "CE3100")],
)
async def test_an_unknown_verification_is_a_refusal(api, call, code):
    with pytest.raises(TossRejected) as caught:
        await CALLS[call](api, "no-such-tx")
    assert caught.value.error_code == code


async def test_asking_for_a_result_too_early_costs_nothing(api, sandbox):
    tx_id = (await api.request_one_touch()).tx_id
    with pytest.raises(TossRejected) as caught:
        await api.result(tx_id)
    assert (caught.value.error_code, caught.value.http_status) == ("CE3102", 400)
    assert sandbox.state.count("result") == 1


# --- A refused token --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
async def test_a_refused_token_is_replaced_and_the_call_repeated_once_with_a_new_session(rig, sandbox, call):
    tx_id = await approved(rig.api, sandbox)
    before = sandbox.state.count(wire_name(call))
    sandbox.state.revoke_tokens()
    assert await CALLS[call](rig.api, tx_id)
    assert sandbox.state.count(wire_name(call)) - before == 2
    assert sandbox.state.count("token") == 2
    assert len(rig.tokens.refused) == 1
    if call == "result":
        assert sandbox.state.transaction(tx_id).reads == 1


@pytest.mark.parametrize("call", ["personal", "result"])
async def test_the_repetition_never_shows_a_session_twice(call):
    bodies = []

    async def refuse(connection) -> None:
        while (request := await connection.request()) is not None:
            bodies.append(json.loads(request.partition(b"\r\n\r\n")[2]))
            connection.send(b'{"error":"invalid_token"}', status="401 Unauthorized")
            await connection.writer.drain()

    async with Host.running(refuse) as host, api_at(host.url[: -len("/call")], token) as rig:
        with pytest.raises(Unintelligible) as caught:
            await CALLS[call](rig.api, "tx")
        assert caught.value.was_refused
    assert len(bodies) == 2
    first, second = bodies
    assert first.keys() == second.keys()
    secret = [key for key in first if key in {"sessionKey", "userName", "userPhone", "userBirthday"}]
    for key in secret:
        assert first[key].split("$")[1] != second[key].split("$")[1]
        assert first[key].split("$")[2] != second[key].split("$")[2]
    assert {key: first[key] for key in first if key not in secret} == {
        key: second[key] for key in second if key not in secret
    }


async def token() -> str:
    return "t0k3n"


REFUSED_TOKEN = {
    "401 with CE1000": ("401 Unauthorized", {"resultType": "FAIL", "error": {"errorCode": "CE1000"}}),
    "400 with CE1000": ("400 Bad Request", {"resultType": "FAIL", "error": {"errorCode": "CE1000"}}),
    "200 with CE1000": ("200 OK", {"resultType": "FAIL", "error": {"errorCode": "CE1000"}}),
    "401 with another code": ("401 Unauthorized", {"resultType": "FAIL", "error": {"errorCode": "CE1001"}}),
    "401 in OAuth's form": ("401 Unauthorized", {"error": "invalid_token"}),
    "401 without JSON": ("401 Unauthorized", "<html>"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", REFUSED_TOKEN)
async def test_a_token_that_stays_refused_is_tried_twice_and_never_more(call, how):
    status, body = REFUSED_TOKEN[how]
    script = answering(body.encode() if isinstance(body, str) else json.dumps(body).encode(), status=status)
    async with Host.running(script) as host, api_at(host.url[: -len("/call")], token) as rig:
        with pytest.raises((TossRejected, Unintelligible)):
            await CALLS[call](rig.api, "tx")
        assert len(host.requests) == 2
        assert (rig.tokens.gets, len(rig.tokens.refused)) == (2, 1)


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "500 Internal Server Error"])
async def test_other_refusals_are_no_reason_for_a_new_token(status):
    body = json.dumps({"resultType": "FAIL", "error": {"errorCode": "CE3102"}}).encode()
    script = answering(body, status=status)
    async with Host.running(script) as host, api_at(host.url[: -len("/call")], token) as rig:
        with pytest.raises(TossRejected):
            await rig.api.result("tx")
        assert (len(host.requests), rig.tokens.gets, rig.tokens.refused) == (1, 1, [])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("order", [{"kind": "oauth_error"}, {"kind": "html_502"}, {"kind": "reset_after"}])
async def test_without_a_token_nothing_is_sent(rig, sandbox, call, order):
    sandbox.state.order_fault("token", **order)
    with pytest.raises(NotSent, match="token") as caught:
        await CALLS[call](rig.api, "tx")
    assert caught.value.__cause__ is not None
    assert sandbox.state.count(wire_name(call)) == 0


async def test_a_new_token_that_cannot_be_had_leaves_the_call_unsent(rig, sandbox):
    """The first sending was refused, so nothing has happened."""
    tx_id = await approved(rig.api, sandbox)
    sandbox.state.revoke_tokens()
    sandbox.state.order_fault("token", "html_502")
    with pytest.raises(NotSent):
        await rig.api.result(tx_id)
    assert (sandbox.state.count("result"), sandbox.state.transaction(tx_id).reads) == (1, 0)


# --- Lost answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reset_after", "reset_before"])
@pytest.mark.parametrize("call", ["request", "personal", "result"])
async def test_a_lost_answer_is_not_asked_for_again(api, sandbox, call, kind):
    tx_id = await approved(api, sandbox)
    before = sandbox.state.count(wire_name(call))
    sandbox.state.order_fault(wire_name(call), kind)
    with pytest.raises(OutcomeUnknown):
        await CALLS[call](api, tx_id)
    assert sandbox.state.count(wire_name(call)) - before == 1
    assert sandbox.state.transaction(tx_id).reads == (1 if (call, kind) == ("result", "reset_after") else 0)


async def test_the_lost_answer_to_a_status_is_asked_for_once_more_and_no_more(api, sandbox):
    tx_id = (await api.request_one_touch()).tx_id
    sandbox.state.order_fault("status", "reset_after")
    assert await api.status(tx_id) is RequestStatus.REQUESTED
    assert sandbox.state.count("status") == 2
    sandbox.state.order_fault("status", "reset_after", times=3)
    with pytest.raises(OutcomeUnknown):
        await api.status(tx_id)
    assert sandbox.state.count("status") == 4


@pytest.mark.parametrize("order", [{"kind": "html_502", "after_effect": True}, {"kind": "truncated_json"}])
async def test_a_spoilt_answer_to_a_result_is_unintelligible_and_not_asked_for_again(api, sandbox, order):
    tx_id = await approved(api, sandbox)
    sandbox.state.order_fault("result", **order)
    with pytest.raises(Unintelligible) as caught:
        await api.result(tx_id)
    assert caught.value.is_json is False
    assert (sandbox.state.count("result"), sandbox.state.transaction(tx_id).reads) == (1, 1)


async def test_the_deadline_after_sending_leaves_the_outcome_unknown(sandbox):
    async with api_for(sandbox, deadline=timedelta(seconds=0.4)) as rig:
        tx_id = await approved(rig.api, sandbox)
        sandbox.state.order_fault("result", "hold")
        with pytest.raises(OutcomeUnknown, match="deadline"):
            await rig.api.result(tx_id)
    assert (sandbox.state.count("result"), sandbox.state.transaction(tx_id).reads) == (1, 1)


async def test_the_deadline_before_sending_means_not_sent():
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    async with Host.running(silence) as host:
        async with api_at(host.url[: -len("/call")], never, deadline=timedelta(seconds=0.05)) as rig:
            with pytest.raises(NotSent, match="deadline"):
                await rig.api.result("tx")
        assert host.connections == 0


async def test_the_deadline_while_a_refused_token_is_replaced_means_not_sent():
    async def once() -> str:
        if once.asked:
            await asyncio.Event().wait()
        once.asked = True
        return "t"

    once.asked = False
    async with Host.running(answering(b'{"error":"invalid_token"}', status="401 Unauthorized")) as host:
        async with api_at(host.url[: -len("/call")], once, deadline=timedelta(seconds=0.3)) as rig:
            with pytest.raises(NotSent, match="deadline"):
                await rig.api.result("tx")
        assert len(host.requests) == 1


async def test_the_deadline_covers_both_sendings():
    async def script(connection) -> None:
        await connection.request()
        connection.send(b'{"error":"invalid_token"}', status="401 Unauthorized")
        await connection.request()
        await silence(connection)

    async with Host.running(script) as host:
        async with api_at(host.url[: -len("/call")], token, deadline=timedelta(seconds=0.3)) as rig:
            with pytest.raises(OutcomeUnknown):
                await rig.api.result("tx")
        assert len(host.requests) == 2


# --- Answers to something else ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["status", "result"])
async def test_the_answer_for_another_verification_is_refused(api, sandbox, call):
    tx_id = await approved(api, sandbox)
    sandbox.state.order_fault(call, "wrong_tx")
    with pytest.raises(Unintelligible, match="another"):
        await CALLS[call](api, tx_id)


@pytest.mark.parametrize("call", ["request", "status", "result"])
async def test_an_answer_without_its_tx_id_is_refused(api, sandbox, call):
    tx_id = await approved(api, sandbox)
    sandbox.state.order_fault(call, "missing_field", field="txId")
    with pytest.raises(Unintelligible):
        await CALLS[call](api, tx_id)


@pytest.mark.parametrize("call", CALLS)
async def test_unknown_fields_are_ignored(api, sandbox, call):
    tx_id = await approved(api, sandbox)
    sandbox.state.order_fault(wire_name(call), "extra_field")
    assert await CALLS[call](api, tx_id)


async def call_answered_with(success: dict, call: str):
    body = json.dumps({"resultType": "SUCCESS", "success": success}).encode()
    async with Host.running(answering(body)) as host, api_at(host.url[: -len("/call")], token) as rig:
        return await CALLS[call](rig.api, "tx")


@pytest.mark.parametrize("status", ["CANCELLED", "completed", "", "null", None, 1, ["COMPLETED"]])
@pytest.mark.parametrize("call", ["status", "result"])
async def test_a_status_of_another_form_is_unintelligible(call, status):
    with pytest.raises(Unintelligible) as caught:
        await call_answered_with({"txId": "tx", "status": status, "personalData": {}}, call)
    assert "CANCELLED" not in str(caught.value)


@pytest.mark.parametrize("status", ["REQUESTED", "IN_PROGRESS", "EXPIRED"])
async def test_only_a_completed_result_is_a_result(status):
    with pytest.raises(Unintelligible):
        await call_answered_with({"txId": "tx", "status": status, "personalData": {}}, "result")


@pytest.mark.parametrize("tx_id", ["", "a/b", "a b", "x" * 65, "../x", "tx\n", "거래", 7, None])
async def test_a_tx_id_that_fits_no_path_is_unintelligible(tx_id):
    with pytest.raises(Unintelligible, match="txId"):
        await call_answered_with({"txId": tx_id}, "request")


# --- Opening a result (G3) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["damaged_tag", "wrong_session_id", "wrong_version"])
async def test_one_bad_field_costs_that_field(api, sandbox, kind):
    tx_id = await approved(api, sandbox)
    sandbox.state.order_fault("result", kind, field="name")
    opened = (await api.result(tx_id)).open()
    assert opened.unreadable == ("name",)
    assert set(opened.personal) == set(PERSONAL_FIELDS) - {"name", "ci2", "ciUpdate"}
    assert opened.signature


def result_of(session: Session, **success: object) -> ResultAnswer:
    return ResultAnswer(session, {"txId": "tx", "status": "COMPLETED"} | success)


@pytest.mark.parametrize("absent", [{}, {"ci2": None}, {"ci2": "null"}])
def test_null_in_either_form_is_absent_and_not_unreadable(absent):
    session = Session.new()
    opened = result_of(session, personalData={"name": session.seal("김토스")} | absent).open()
    assert (opened.personal, opened.unreadable) == ({"name": "김토스"}, ())


def test_a_field_that_holds_the_encrypted_text_null_is_absent():
    session = Session.new()
    opened = result_of(session, personalData={"ageGroup": session.seal("null")}).open()
    assert (opened.personal, opened.unreadable) == ({}, ())


@pytest.mark.parametrize("odd", [7, True, [], {}, "", "v1$", "a$b$c", "$$", "가$나$다"])
def test_an_odd_value_costs_its_field_alone(odd):
    session = Session.new()
    opened = result_of(session, personalData={"ci": odd, "name": session.seal("김토스")}).open()
    assert (opened.personal, opened.unreadable) == ({"name": "김토스"}, ("ci",))


@pytest.mark.parametrize("personal", [None, [], "null", 7])
def test_a_result_without_personal_data_opens_to_nothing(personal):
    opened = result_of(Session.new(), personalData=personal, signature="null", completedDt=7).open()
    assert (opened.personal, opened.unreadable, opened.signature, opened.completed_at) == ({}, (), None, None)


async def test_a_closed_answer_survives_being_stored(api, sandbox):
    answer = await api.result(await approved(api, sandbox, "foreigner"))
    again = ResultAnswer.load(answer.dump())
    assert again.open() == answer.open()
    assert again.open().personal["name"] == "JOHANSSON EMMA"


@pytest.mark.parametrize("field", ["userIdentifier", "signature", "newField"])
async def test_an_answer_with_a_lone_surrogate_can_still_be_stored(field):
    body = b'{"resultType":"SUCCESS","success":{"txId":"tx","status":"COMPLETED","%s":"\\ud800"}}' % field.encode()
    async with Host.running(answering(body)) as host, api_at(host.url[: -len("/call")], token) as rig:
        answer = await rig.api.result("tx")
    assert answer.dump().encode()


async def test_nothing_shows_what_is_inside(api, sandbox):
    answer = await api.result(await approved(api, sandbox))
    opened = answer.open()
    shown = repr(answer) + repr(opened) + repr([answer, opened])
    for secret in (*opened.personal.values(), opened.signature, answer.session.dump()):
        assert secret not in shown
    assert not re.search(r"\$|MII", shown)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2022-02-13T17:52:22+09:00", datetime(2022, 2, 13, 8, 52, 22, tzinfo=UTC)),
        ("2022-02-13T08:52:22Z", datetime(2022, 2, 13, 8, 52, 22, tzinfo=UTC)),
        ("2022-02-13T17:52:22.123+09:00", datetime(2022, 2, 13, 8, 52, 22, 123_000, tzinfo=UTC)),
        ("2022-02-13T17:52:22", None),
        ("0001-01-01T00:00:00+09:00", None),
        ("null", None),
        ("", None),
        ("2022-02-30T00:00:00+09:00", None),
        (None, None),
        (20220213, None),
    ],
)
def test_instants_have_an_offset_or_are_absent(text, instant):
    assert parse_instant(text) == instant
