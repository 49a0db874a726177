"""Sealing and hashing: what does not open, and what never shows."""

import base64
import traceback
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import StatementError

from app.cert.tables import Verification
from app.database import Base
from app.vault import Place, Sealed, SealedColumn, UnsealError, Vault

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PLACE = Place("verification", "identity", "tx-1")
VAULT = Vault({"k1": KEY}, active_key="k1", hash_key=KEY)
PLAIN = "김토스 CI0110000000001"


@pytest.mark.parametrize("plain", [PLAIN, "", "\x00", "$" * 3, "k1$", "😀" * 1000])
def test_what_is_sealed_opens_in_its_place(plain):
    assert VAULT.open(VAULT.seal(plain, PLACE), PLACE) == plain


def test_equal_texts_are_sealed_differently():
    """A nonce used twice would give the key away."""
    assert len({VAULT.seal(PLAIN, PLACE).text for _ in range(100)}) == 100


@pytest.mark.parametrize("elsewhere", [{"table": "other"}, {"column": "answer"}, {"row": "tx-2"}, {"row": ""}])
def test_a_value_that_is_moved_does_not_open(elsewhere):
    with pytest.raises(UnsealError):
        VAULT.open(VAULT.seal(PLAIN, PLACE), replace(PLACE, **elsewhere))


def test_the_parts_of_a_place_do_not_run_into_each_other():
    with pytest.raises(UnsealError):
        VAULT.open(VAULT.seal(PLAIN, Place("a", "bc", "d")), Place("ab", "c", "d"))


def test_another_key_of_the_same_id_does_not_open():
    with pytest.raises(UnsealError):
        Vault({"k1": OTHER}, active_key="k1", hash_key=KEY).open(VAULT.seal(PLAIN, PLACE), PLACE)


def test_an_unknown_key_id_is_named():
    with pytest.raises(UnsealError, match="k1"):
        Vault({"k2": KEY}, active_key="k2", hash_key=KEY).open(VAULT.seal(PLAIN, PLACE), PLACE)


def test_a_rotated_vault_seals_with_the_new_key_and_opens_both():
    rotated = Vault({"k1": KEY, "k2": OTHER}, active_key="k2", hash_key=KEY)
    old, new = VAULT.seal(PLAIN, PLACE), rotated.seal(PLAIN, PLACE)
    assert (old.key_id, new.key_id) == ("k1", "k2")
    assert rotated.open(old, PLACE) == rotated.open(new, PLACE) == PLAIN
    with pytest.raises(UnsealError):
        rotated.open(Sealed("k2" + old.text[2:]), PLACE)


def test_no_byte_can_be_changed():
    key_id, _, box = VAULT.seal("ab", PLACE).text.partition("$")
    raw = base64.b64decode(box)
    for index in range(len(raw)):
        changed = raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]
        with pytest.raises(UnsealError):
            VAULT.open(Sealed(f"{key_id}${base64.b64encode(changed).decode()}"), PLACE)


@pytest.mark.parametrize("damage", ["", "k1", "k1$", "k1$!", "k1$가", "k1$AAAA", "k1$" + "A" * 16, "$", "k1$AA AA"])
def test_what_is_no_sealed_value_does_not_open(damage):
    with pytest.raises(UnsealError) as caught:
        VAULT.open(Sealed(damage), PLACE)
    assert PLAIN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_shortened_value_does_not_open(cut):
    sealed = VAULT.seal(PLAIN, PLACE)
    with pytest.raises(UnsealError):
        VAULT.open(Sealed(sealed.text[: -4 * cut]), PLACE)


def test_nothing_shows_the_plain_text_or_a_key():
    sealed = VAULT.seal(PLAIN, PLACE)
    shown = repr(sealed) + repr([sealed]) + repr(VAULT) + str(sealed)
    for secret in (PLAIN, sealed.text, sealed.text[3:], repr(KEY), base64.b64encode(KEY).decode()):
        assert secret not in shown
    assert "김토스" not in sealed.text
    assert PLAIN.encode() not in base64.b64decode(sealed.text[3:])


# --- Hashes -----------------------------------------------------------------------------------------------


def test_a_hash_is_stable_and_keyed_and_of_one_kind():
    assert VAULT.hash("ci", "x") == VAULT.hash("ci", "x")
    assert len(VAULT.hash("ci", "x")) == 64
    others = {
        VAULT.hash("ci", "y"),
        VAULT.hash("di", "x"),
        VAULT.hash("c", "ix"),
        Vault({"k1": KEY}, active_key="k1", hash_key=OTHER).hash("ci", "x"),
    }
    assert len(others | {VAULT.hash("ci", "x")}) == 5


def test_a_hash_survives_the_rotation_of_sealing_keys():
    rotated = Vault({"k2": OTHER}, active_key="k2", hash_key=KEY)
    assert rotated.hash("ci", "x") == VAULT.hash("ci", "x")


# --- The column -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [PLAIN, b"bytes", 7, {"sealed": "x"}])
def test_a_sealed_column_takes_nothing_but_a_sealed_value(plain):
    with pytest.raises(TypeError):
        SealedColumn().process_bind_param(plain, postgresql.dialect())


def test_plain_text_never_reaches_a_table():
    engine = create_engine("sqlite://", hide_parameters=True)
    table = Verification.__table__
    with engine.connect() as connection:
        with pytest.raises(StatementError) as caught:
            connection.execute(insert(table).values(tx_id="t", identity=PLAIN))
        assert PLAIN not in str(caught.value)
        Base.metadata.tables["verification"].create(connection)
        connection.execute(text("INSERT INTO verification (tx_id, request_type, status, created_at, requested_at, "
                                "expires_at, result_state, reads_succeeded, reads_unknown, identity) VALUES "
                                "('t', '', '', 0, 0, 0, '', 0, 0, 'k1$x')"))  # fmt: skip
        read = connection.execute(select(table.c.identity, table.c.answer)).one()
    assert (read.identity, read.answer) == (Sealed("k1$x"), None)
    engine.dispose()


CHARGED = {
    "product_desc", "amount", "amount_tax_free", "amount_taxable", "amount_vat", "amount_service_fee", "options",
}  # fmt: skip


def test_every_column_with_personal_data_is_sealed():
    """What a column of ours may hold in clear is listed here; a new one has to be thought about."""
    clear = {
        "verification": {
            "tx_id", "request_type", "token_hash", "status", "created_at", "requested_at", "expires_at",
            "completion_seen_at", "completed_at", "result_state", "end_code", "reads_succeeded", "reads_unknown",
            "lease_id", "lease_until", "signature_report", "ci_hash", "di_hash", "stored_at", "erased_at",
            "session_id", "user_id",
        },
        "app_user": {
            "user_id", "kind", "key_hash", "link_version", "created_at", "linked_at", "unlinked_at", "scopes",
            "agreed_terms", "ci_hash", "access_expires_at", "refresh_expires_at", "refresh_lease_id",
            "refresh_lease_until", "unlink_wanted_at", "unlink_sent_at",
        },
        "login_session": {"session_id", "token_hash", "user_id", "created_at", "expires_at", "ends_at"},
        "login_exchange": {
            "code_hash", "state", "created_at", "lease_id", "lease_until", "settled_at", "problem", "toss_code",
            "user_id",
        },
        "notice": {
            "notice_id", "callback", "state", "outcome", "subject_hash", "content_hash", "open_key", "received_at",
            "last_received_at", "deliveries", "attempts", "next_attempt_at", "handled_at",
        },
        "server_key": {"key_id", "name", "key_hash", "scopes", "created_at", "expires_at", "revoked_at"},
        "event": {
            "position", "event_id", "type", "subject", "data", "occurred_at", "state", "attempts",
            "next_attempt_at", "give_up_at", "lease_id", "lease_until", "last_status", "delivered_at",
            "traceparent",
        },
        "purchase": {
            "order_id", "user_id", "key_hash", "sku", "state", "toss_status", "granted_at", "refunded_at",
            "changed_at", "checked_at", "next_check_at",
        },
        "subscription": {
            "order_id", "sku", "reason", "status", "access_granted", "expires_at", "auto_renew", "occurred_at",
            "rank", "changed_at",
        },
        "payment_order": {
            "order_id", "is_test", "idempotency_hash", "request_hash", "created_by", "reference", "user_id",
            "key_hash", "billing_key_id", "created_at", "expires_at", "canceled_at", *CHARGED,
        },
        "payment": {
            "order_no", "is_test", "order_id", "product_id", "billing_key_id", "open_key", "user_id", "key_hash",
            "state", "version", "quiet_until", "next_check_at", "checks", "created_at", "changed_at", "paid_at",
            "paid_amount", "pay_method", "transaction_id", "toss_code", "hold_reason", "refund_by",
            "refund_asked_at", "refund_no", "refunded_at", *CHARGED,
        },
        "payment_step": {
            "step_id", "order_no", "number", "at", "from_state", "to_state", "cause", "actor", "detail",
        },
        "billing_key": {
            "billing_key_id", "is_test", "user_id", "key_hash", "product_desc", "state", "next_check_at", "checks",
            "created_at", "changed_at",
        },
    }  # fmt: skip
    found = {
        table.name: {column.name for column in table.columns if not isinstance(column.type, SealedColumn)}
        for table in Base.metadata.tables.values()
    }
    assert {name: found[name] for name in clear if name in found} == {name: clear[name] for name in found}
