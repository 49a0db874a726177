"""The session cipher against the vectors, which come from Toss's own SDK."""

import pytest

from sandbox.crypto import CannotOpen, Session, open_session, rsa_key_from_text, strict_base64


@pytest.fixture(scope="session")
def rsa_key(vectors):
    return rsa_key_from_text(vectors["keys"]["test_rsa_4096"]["pkcs8_der_base64"])


def session_of(serialized):
    version, session_id, _, key, iv = serialized.split("$")
    return Session(version, session_id, strict_base64(key), strict_base64(iv))


def test_sessions_of_the_sdk_open_and_their_fields_agree_both_ways(vectors, rsa_key):
    opened = 0
    for vector in vectors["random_sessions"]:
        if (vector["rsa_key"], vector["algorithm"]) != ("test_rsa_4096", "AES_GCM"):
            continue
        session = open_session(vector["session_key"], rsa_key)
        assert session == session_of(vector["serialized_session"])
        for field in vector["fields"]:
            assert session.open(field["envelope"]) == field["plaintext"]
            assert session.seal(field["plaintext"]) == field["envelope"]
            opened += 1
    assert opened >= 28


def test_fixed_sessions_give_the_very_same_envelopes(vectors, rsa_key):
    for vector in vectors["fixed_sessions"]:
        if vector["algorithm"] != "AES_GCM":
            continue
        expected = session_of(vector["serialized_session"])
        for session_key in vector["example_session_keys_test_rsa_4096"]:
            assert open_session(session_key, rsa_key) == expected
        for field in vector["fields"]:
            assert expected.seal(field["plaintext"]) == field["envelope"]


def test_cbc_sessions_are_refused(vectors, rsa_key):
    cbc = [vector for vector in vectors["random_sessions"] if vector["algorithm"] == "AES_CBC"]
    assert cbc
    for vector in cbc:
        with pytest.raises(CannotOpen):
            open_session(vector["session_key"], rsa_key)


def test_only_the_valid_gcm_envelope_opens(vectors):
    """Stricter than the SDK, which lets padding, alphabet and further parts pass (reference 5)."""
    for vector in vectors["negative"]:
        if "$AES_GCM$" not in vector["serialized_session"] or vector["envelope"] is None:
            continue
        session = session_of(vector["serialized_session"])
        if vector["case"] == "valid":
            assert session.open(vector["envelope"]) == vector["value"]
        else:
            with pytest.raises(CannotOpen):
                session.open(vector["envelope"])


def test_secrets_are_not_in_a_sessions_text(vectors):
    session = session_of(vectors["fixed_sessions"][0]["serialized_session"])
    assert "key" not in repr(session)
