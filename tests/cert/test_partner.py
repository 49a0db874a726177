"""The partner-server door: the full result, comparison, evidence, erasure; and reconcile's part of erasing."""

import base64

import pytest
from sqlalchemy import select, text

from app.cert.tables import Verification
from app.server_keys import Scope
from tests.conftest import settings_for
from tests.scenarios import Bff, assert_problem

EVERY_CALL = [
    ("GET", "/status", Scope.CERT_READ),
    ("POST", "/result", Scope.CERT_READ),
    ("POST", "/compare", Scope.CERT_COMPARE),
    ("GET", "/signature", Scope.CERT_EVIDENCE),
    ("DELETE", "", Scope.CERT_ERASE),
]


async def test_the_full_result_has_every_field(bff, sandbox):
    verification = await bff.completed("minor")
    person = sandbox.state.personas["minor"]
    answer = await bff.as_partner("POST", verification, "/result", await bff.server_key(Scope.CERT_READ))
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert body["identity"] == {
        "ci": person.ci,
        "di": person.di,
        "name": person.name,
        "birthday": person.birthday,
        "gender": person.gender,
        "nationality": person.nationality,
        "ci2": None,
        "ciUpdate": None,
    }
    assert body["ageGroup"] == {"stated": "MINOR", "derived": "MINOR", "rule": "by_date", "disagrees": False}
    assert body["signature"]["isValid"] is True
    assert set(body["signature"]["checks"].values()) == {"passed"}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("method", "path", "scope"), EVERY_CALL)
async def test_every_call_needs_a_key_with_its_own_scope(bff, method, path, scope):
    verification = await bff.completed()
    body = {"json": {"name": "김토스"}} if path == "/compare" else {}
    others = await bff.server_key(*(set(Scope) - {scope}))
    refused = await bff.as_partner(method, verification, path, others, **body)
    assert_problem(refused, 403, "scope_missing")
    for headers in (
        {},
        verification.headers,
        {"Authorization": "Bearer sk_made-up"},
        {"Authorization": "Basic eDp5"},
    ):
        refused = await bff.as_partner(method, verification, path, headers, **body)
        assert_problem(refused, 401, "server_key_required")
    assert bff.sandbox.state.count("result") == 0


async def test_a_server_key_is_no_verification_token(bff):
    verification = await bff.completed()
    path = f"/api/v1/cert/requests/{verification.tx_id}/result"
    answer = await bff.http.post(path, headers=await bff.server_key())
    assert_problem(answer, 404, "verification_not_found")


@pytest.mark.parametrize(
    ("given", "matches", "is_same"),
    [
        ({"name": "김토스", "birthday": "19930324"}, {"name": True, "birthday": True}, True),
        ({"name": " 김토스 ", "birthday": "19930325"}, {"name": True, "birthday": False}, False),
        ({"name": "김토끼"}, {"name": False}, False),
        ({"name": "김토스"}, {"name": True}, True),  # decomposed Unicode
        ({"ci": "ITS-OWN"}, {"ci": True}, True),
        ({"ci": "CI0110000000001"}, {"ci": False}, False),
        ({"ci": "ITS-OWN", "name": "박토스"}, {"ci": True, "name": False}, False),
        ({"di": "ITS-OWN"}, {"di": True}, True),
        ({"di": "another"}, {"di": False}, False),
    ],
)
async def test_comparison_answers_yes_or_no(bff, sandbox, given, matches, is_same):
    verification = await bff.completed()
    person = sandbox.state.personas["test_person"]
    own = {"ci": person.ci, "di": person.di}
    given = {field: own[field] if value == "ITS-OWN" else value for field, value in given.items()}
    key = await bff.server_key(Scope.CERT_COMPARE)
    answer = await bff.as_partner("POST", verification, "/compare", key, json=given)
    assert answer.json() == {"matches": matches, "isSamePerson": is_same}


async def test_foreign_names_compare_without_regard_to_case(bff):
    verification = await bff.completed("foreigner")
    key = await bff.server_key()
    answer = await bff.as_partner("POST", verification, "/compare", key, json={"name": "Johansson  Emma"})
    assert answer.json()["isSamePerson"] is True


async def test_what_cannot_be_read_cannot_be_compared(bff, sandbox):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "damaged_tag", field="ci")
    key = await bff.server_key()
    given = {"ci": sandbox.state.personas["test_person"].ci, "name": "김토스"}
    answer = await bff.as_partner("POST", verification, "/compare", key, json=given)
    assert answer.json() == {"matches": {"ci": None, "name": True}, "isSamePerson": None}


@pytest.mark.parametrize(
    "body", [{}, {"ci": ""}, {"ci": "한글"}, {"name": "1"}, {"birthday": "19930231"}, {"x": 1}, []]
)
async def test_a_comparison_needs_something_sensible(bff, body):
    verification = await bff.completed()
    answer = await bff.as_partner("POST", verification, "/compare", await bff.server_key(), json=body)
    assert_problem(answer, 422, "invalid_request")


async def test_the_signature_is_kept_as_evidence(bff):
    verification = await bff.completed()
    key = await bff.server_key()
    missing = await bff.as_partner("GET", verification, "/signature", key)
    assert_problem(missing, 404, "verification_not_found")
    await bff.result(verification)
    evidence = (await bff.as_partner("GET", verification, "/signature", key)).json()
    assert base64.b64decode(evidence["signature"], validate=True)
    assert evidence["report"]["isValid"] is True


@pytest.mark.parametrize(
    ("variant", "failed"),
    [
        ("content_changed", {"digest"}),
        ("signature_flip", {"signature"}),
        ("other_tx", {"tx_id"}),
        ("expired_leaf", {"validity"}),
        ("foreign_ca", {"chain"}),
    ],
)
async def test_a_bad_signature_is_told_to_the_partner(bff, sandbox, variant, failed):
    verification = await bff.completed()
    sandbox.state.order_fault("result", "bad_signature", variant=variant)
    full = (await bff.as_partner("POST", verification, "/result", await bff.server_key())).json()
    checks = full["signature"]["checks"]
    assert full["signature"]["isValid"] is False
    assert failed <= {name for name, outcome in checks.items() if outcome == "failed"}


async def test_without_pinned_authorities_the_chain_is_skipped_and_said_so(embedded, sandbox):
    settings = settings_for(embedded, sandbox, signature_ca_files=[])
    async with Bff.running(settings, sandbox) as bff:
        verification = await bff.completed()
        sandbox.state.order_fault("result", "bad_signature", variant="foreign_ca")
        full = (await bff.as_partner("POST", verification, "/result", await bff.server_key())).json()
    assert full["signature"]["isValid"] is None  # nothing failed, nobody is proved
    assert full["signature"]["checks"]["chain"] == "skipped"
    assert full["signature"]["checks"]["policy"] == "skipped"


async def test_a_disagreeing_age_group_is_flagged(embedded, sandbox):
    # The minor turns nineteen in 2033; by then Toss (the sandbox) still says MINOR.
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        sandbox.state.clock.advance(9 * 365.25 * 86400)
        verification = await bff.completed("minor")
        outcome = (await bff.result(verification)).json()["outcome"]
    assert (outcome["ageGroup"], outcome["ageGroupDisagrees"]) == ("MINOR", True)


async def rows(bff) -> list[str]:
    """Everything the table holds, as text."""
    async with bff.resources.database.transaction() as session:
        found = (await session.execute(text("SELECT * FROM verification"))).all()
    return [str(value) for row in found for value in row]


async def row_of(bff, verification) -> Verification:
    async with bff.resources.database.transaction() as session:
        return await session.scalar(select(Verification).where(Verification.tx_id == verification.tx_id))


async def test_nothing_personal_is_stored_in_clear(bff, sandbox):
    verification = await bff.start(name="김토스", phone="01012345678", birthday="19930324")
    sandbox.state.approve(verification.tx_id)
    await bff.result(verification)
    person = sandbox.state.personas["test_person"]
    stored = "\n".join(await rows(bff))
    for secret in (person.ci, person.di, person.name, person.birthday, "FEMALE", "01012345678", verification.token):
        assert secret not in stored
    row = await row_of(bff, verification)
    assert row.identity.key_id == row.signature.key_id == "k1"
    assert row.ci_hash == bff.resources.vault.hash("ci", person.ci)


@pytest.mark.parametrize("keeps_signature", [False, True])
async def test_erasure_removes_the_person_and_keeps_the_fact(bff, keeps_signature):
    verification = await bff.completed()
    await bff.result(verification)
    key = await bff.server_key()
    query = {"params": {"keepSignature": "true"}} if keeps_signature else {}
    for _ in range(2):  # may be repeated
        assert (await bff.as_partner("DELETE", verification, "", key, **query)).status_code == 204
    row = await row_of(bff, verification)
    assert (row.identity, row.answer, row.ci_hash, row.di_hash) == (None, None, None, None)
    assert (row.signature is not None) is keeps_signature
    assert row.erased_at is not None
    assert_problem(await bff.result(verification), 410, "verification_erased")
    assert (await bff.status(verification)).json()["status"] == "COMPLETED"
    assert bff.sandbox.state.count("result") == 1


async def test_what_is_erased_is_gone_from_the_files_too(embedded, sandbox, tmp_path):
    async with Bff.running(settings_for(embedded, sandbox), sandbox) as bff:
        verification = await bff.completed()
        await bff.result(verification)
        row = await row_of(bff, verification)
        sealed = [row.identity.text.encode(), row.signature.text[:200].encode(), row.ci_hash.encode()]
        await bff.as_partner("DELETE", verification, "", await bff.server_key())
        stored = b"".join(file.read_bytes() for file in tmp_path.glob("bff.db*"))
    assert verification.tx_id.encode() in stored
    assert not [value for value in sealed if value in stored]


async def test_an_erased_verification_cannot_be_read_afterwards(bff):
    verification = await bff.completed()
    await bff.as_partner("DELETE", verification, "", await bff.server_key())
    assert_problem(await bff.result(verification), 410, "verification_erased")
    assert bff.sandbox.state.count("result") == 0


async def test_retention_erases_the_identity_first_and_the_signature_later(bff):
    verification = await bff.completed()
    await bff.result(verification)
    assert (await bff.resources.cert.reconcile()).identities_erased == 0
    bff.clock.advance(days=365, minutes=1)
    done = await bff.resources.cert.reconcile()
    assert (done.identities_erased, done.signatures_erased) == (1, 0)
    assert_problem(await bff.result(verification), 410, "verification_erased")
    evidence = await bff.as_partner("GET", verification, "/signature", await bff.server_key())
    assert evidence.status_code == 200
    bff.clock.advance(days=1825 - 365)
    done = await bff.resources.cert.reconcile()
    assert (done.identities_erased, done.signatures_erased) == (0, 1)
    assert (await row_of(bff, verification)).signature is None
