"""The way a mini-app goes: start, status, result, and the same again."""

import pytest

from tests.conftest import settings_for
from tests.scenarios import Bff, assert_problem

PERSON = {"name": "김토스", "phone": "01012345678", "birthday": "19930324"}


@pytest.mark.parametrize("person", [{}, PERSON], ids=["one touch", "personal"])
async def test_a_verification_succeeds(bff, sandbox, person):
    verification = await bff.start(**person)
    assert (await bff.status(verification)).json()["status"] == "REQUESTED"
    sandbox.state.open(verification.tx_id)
    assert (await bff.status(verification)).json()["status"] == "IN_PROGRESS"
    sandbox.state.approve(verification.tx_id)
    assert (await bff.status(verification)).json()["status"] == "COMPLETED"

    first = await bff.result(verification)

    assert first.status_code == 200, first.text
    assert first.json()["outcome"] | {"completedAt": ""} == {
        "maskedName": "김*스",
        "ageGroup": "ADULT",
        "ageGroupDisagrees": False,
        "completedAt": "",
    }
    assert first.json()["retrieval"] == {"source": "READ", "readsLeft": 1}
    assert first.headers["cache-control"] == "no-store"


async def test_repeated_results_come_from_our_store(bff, sandbox):
    verification = await bff.completed()
    first = await bff.result(verification)
    again = await bff.result(verification)
    assert again.json() == first.json() | {"retrieval": {"source": "STORED", "readsLeft": 1}}
    assert sandbox.state.count("result") == 1


async def test_what_the_user_typed_reaches_toss_encrypted(bff, sandbox):
    verification = await bff.start(**PERSON)
    sent = sandbox.state.transaction(verification.tx_id).sent_person
    assert (sent.name, sent.phone, sent.birthday) == tuple(PERSON.values())


async def test_without_a_body_it_is_one_touch(bff):
    answer = await bff.http.post("/api/v1/cert/requests")
    assert answer.json()["requestType"] == "USER_NONE"


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ("text_null", set()),
        ("json_null", set()),
        ("absent", set()),
        ("real", {"appScheme", "androidAppUri", "iosAppUri"}),
    ],
)
async def test_launch_links_are_absent_unless_they_are_real(bff, sandbox, links, expected):
    sandbox.state.set_switches(links=links)
    verification = await bff.start(**PERSON)
    assert set(verification.body["launch"]) == expected


async def test_asking_too_early_is_a_conflict_with_a_time_to_come_back(bff):
    verification = await bff.start()
    answer = await bff.result(verification)
    assert assert_problem(answer, 409, "verification_not_completed")["retryable"] is True
    assert int(answer.headers["retry-after"]) >= 1
    bff.sandbox.state.approve(verification.tx_id)
    assert (await bff.result(verification)).status_code == 200


async def test_an_expired_request_ends(bff, sandbox):
    verification = await bff.start()
    sandbox.state.expire(verification.tx_id)
    assert (await bff.status(verification)).json()["status"] == "EXPIRED"
    assert_problem(await bff.result(verification), 410, "verification_expired")


async def test_a_status_that_cannot_change_is_not_asked_for_again(bff, sandbox):
    verification = await bff.completed()
    for _ in range(3):
        assert (await bff.status(verification)).json()["status"] == "COMPLETED"
    assert sandbox.state.count("status") == 1


@pytest.mark.parametrize("what", ["status", "result"])
async def test_a_verification_belongs_to_the_holder_of_its_token(bff, what):
    mine, theirs = await bff.completed(), await bff.completed()
    call = bff.http.get if what == "status" else bff.http.post
    path = f"/api/v1/cert/requests/{mine.tx_id}/{what}"
    assert_problem(await call(path, headers=theirs.headers), 404, "verification_not_found")
    assert_problem(await call(path), 401, "verification_token_required")
    assert_problem(await call(path, headers={"Authorization": "Bearer "}), 401, "verification_token_required")
    unknown = f"/api/v1/cert/requests/none-such/{what}"
    assert_problem(await call(unknown, headers=mine.headers), 404, "verification_not_found")
    assert bff.sandbox.state.count("result") == 0


async def test_only_what_the_operator_discloses_is_shown(embedded, sandbox):
    settings = settings_for(embedded, sandbox, disclosed_fields=["birthday", "gender", "nationality", "name"])
    async with Bff.running(settings, sandbox) as bff:
        outcome = (await bff.result(await bff.completed("foreigner"))).json()["outcome"]
    assert outcome == {
        "name": "JOHANSSON EMMA",
        "birthday": "19880611",
        "gender": "FEMALE",
        "nationality": "FOREIGNER",
    }


@pytest.mark.parametrize("field", ["ci", "di", "phone"])
async def test_ci_and_di_cannot_be_disclosed_to_a_mini_app(embedded, sandbox, field):
    with pytest.raises(ValueError, match="disclosed_fields"):
        settings_for(embedded, sandbox, disclosed_fields=[field])


async def test_a_missing_age_group_is_unknown_never_adult(bff, sandbox):
    sandbox.state.set_switches(age_group=False)
    outcome = (await bff.result(await bff.completed())).json()["outcome"]
    assert (outcome["ageGroup"], outcome["ageGroupDisagrees"]) == ("UNKNOWN", False)


async def test_null_fields_as_text_are_absent(bff, sandbox):
    sandbox.state.set_switches(null_fields_as_text=True, explicit_error_null=True)
    verification = await bff.completed()
    full = await bff.as_partner("POST", verification, "/result", await bff.server_key())
    assert full.json()["identity"]["ci2"] is None
    assert full.json()["unreadableFields"] == []


async def test_the_request_url_and_life_are_the_operators(embedded, sandbox):
    settings = settings_for(embedded, sandbox, expire_seconds=60)
    async with Bff.running(settings, sandbox) as bff:
        verification = await bff.start()
    life = sandbox.state.transaction(verification.tx_id)
    assert (life.expires_at - life.requested_at).total_seconds() == 60


async def test_the_sibling_paths_can_be_set(embedded, sandbox):
    paths = {f"{call}_path": f"/api/v2/sign/user/auth/{call}" for call in ("request", "status", "result")}
    async with Bff.running(settings_for(embedded, sandbox, **paths), sandbox) as bff:
        verification = await bff.completed()
        assert (await bff.status(verification)).status_code == 200
        assert (await bff.result(verification)).status_code == 200
