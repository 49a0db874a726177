"""The session cipher against the vectors of the SDK, both ways, and against all that must be refused."""

import base64
import json
import re
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from app.toss.crypto import TOSS_PUBLIC_KEY, EnvelopeError, PublicKey, Session

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "toss-cert.json").read_text(encoding="utf-8"))
KEYS = VECTORS["keys"]
EVERY_SESSION = VECTORS["random_sessions"] + VECTORS["fixed_sessions"]
SESSIONS = [session for session in EVERY_SESSION if session["algorithm"] == "AES_GCM"]
CBC_SESSIONS = [session for session in EVERY_SESSION if session["algorithm"] == "AES_CBC"]
WRAPPED = [
    pytest.param(rsa_key, text, session["session_key_plaintext"], id=f"{session['session_id']}-{number}")
    for session in SESSIONS
    for rsa_key, texts in [
        (session.get("rsa_key"), [session["session_key"]] if "session_key" in session else []),
        ("test_rsa_4096", session.get("example_session_keys_test_rsa_4096", [])),
    ]
    for number, text in enumerate(texts)
    if rsa_key != "toss_default"  # only Toss can open those
]
FIELDS = [
    pytest.param(session, field, id=f"{session['session_id'][-4:]}-{field['name']}")
    for session in SESSIONS
    for field in session["fields"]
]
NEGATIVES = {
    case["case"]: case
    for case in VECTORS["negative"]
    if case["envelope"] is not None  # a null field is absent, and never reaches the cipher
}
GCM_NEGATIVES = [name for name in NEGATIVES if name != "valid" and not name.startswith("cbc_")]
CBC_NEGATIVES = [name for name in NEGATIVES if name.startswith("cbc_")]

FIXED = VECTORS["fixed_sessions"][0]
SECRETS = {
    "key": FIXED["aes_key_base64"],
    "raw key": base64.b64decode(FIXED["aes_key_base64"]).decode("latin-1"),
    "nonce": FIXED["iv_base64"],
    "raw nonce": base64.b64decode(FIXED["iv_base64"]).decode("latin-1"),
    "plaintext": "김토스",
}


def fixed_session():
    return Session.load(FIXED["serialized_session"])


def unwrap(rsa_key, session_key):
    """Toss's side of the session key, written from the reference and not from the app."""
    private_key = load_der_private_key(base64.b64decode(KEYS[rsa_key]["pkcs8_der_base64"]), password=None)
    oaep = padding.OAEP(mgf=padding.MGF1(SHA1()), algorithm=SHA1(), label=None)
    return private_key.decrypt(base64.b64decode(session_key.split("$")[2]), oaep).decode("ascii")


def pem(spki_der_base64):
    lines = re.findall(".{1,64}", spki_der_base64)
    return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----"])


def everything_said_by(error):
    """All an error report would print of it, chained exceptions included, but for the local variables."""
    said = []
    while error is not None:
        said += [
            str(error),
            repr(error),
            repr(error.args),
            repr(vars(error)),
            repr(getattr(error, "object", "")),
        ]
        said += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return "\n".join(said)


class TestVectors:
    def test_cover_both_modes_and_all_texts(self):
        assert len(SESSIONS) == 5
        assert len(CBC_SESSIONS) == 3
        assert len(FIELDS) == 94
        assert len(WRAPPED) == 6

    @pytest.mark.parametrize(("session", "field"), FIELDS)
    def test_an_envelope_of_the_sdk_opens(self, session, field):
        opened = Session.load(session["serialized_session"]).open(field["envelope"])
        assert opened == field["plaintext"]
        assert len(opened.encode()) == field["plaintext_utf8_bytes"]

    @pytest.mark.parametrize(("session", "field"), FIELDS)
    def test_sealing_again_gives_the_bytes_of_the_sdk(self, session, field):
        assert Session.load(session["serialized_session"]).seal(field["plaintext"]) == field["envelope"]

    @pytest.mark.parametrize(("rsa_key", "session_key", "plaintext"), WRAPPED)
    def test_a_session_key_of_the_sdk_holds_what_we_would_send(self, rsa_key, session_key, plaintext):
        assert unwrap(rsa_key, session_key) == plaintext

    @pytest.mark.parametrize("rsa_key", ["test_rsa_4096", "test_rsa_2048"])
    @pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session["session_id"])
    def test_our_session_key_holds_what_the_sdk_would_send(self, session, rsa_key):
        ours = Session(
            version=session["version"],
            session_id=session["session_id"],
            key=base64.b64decode(session["aes_key_base64"]),
            nonce=base64.b64decode(session["iv_base64"]),
        )
        session_key = ours.session_key(PublicKey.parse(KEYS[rsa_key]["spki_der_base64"]))
        assert session_key.rpartition("$")[0] == f"{session['version']}${session['session_id']}"
        assert unwrap(rsa_key, session_key) == session["session_key_plaintext"]

    @pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session["session_id"])
    def test_the_serialised_session_is_that_of_the_sdk(self, session):
        assert Session.load(session["serialized_session"]).dump() == session["serialized_session"]

    @pytest.mark.parametrize("session", CBC_SESSIONS, ids=lambda session: session["session_id"])
    def test_a_cbc_session_is_refused(self, session):
        with pytest.raises(ValueError, match="not a serialised") as caught:
            Session.load(session["serialized_session"])
        assert session["aes_key_base64"] not in everything_said_by(caught.value)

    @pytest.mark.parametrize("session", CBC_SESSIONS, ids=lambda session: session["session_id"])
    def test_an_envelope_of_a_cbc_session_is_refused(self, session):
        ours = Session(
            version=session["version"],
            session_id=session["session_id"],
            key=base64.b64decode(session["aes_key_base64"]).ljust(32, b"\0"),
            nonce=bytes(12),
        )
        for field in session["fields"]:
            with pytest.raises(EnvelopeError) as caught:
                ours.open(field["envelope"])
            assert caught.value.reason == "format"  # the HMAC is a fourth part


class TestDamagedEnvelopes:
    def test_the_undamaged_one_opens(self):
        case = NEGATIVES["valid"]
        assert Session.load(case["serialized_session"]).open(case["envelope"]) == case["value"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("empty_string", "format"),
            ("no_separator", "format"),
            ("wrong_version_v2", "version"),
            ("version_v1_0.0.14_against_v1_session", "version"),
            ("session_id_case_differs", "session"),
            ("bit_flip_ciphertext", "tag"),
            ("truncated_by_one_byte", "tag"),
            ("tag_only_15_bytes", "tag"),
            ("not_base64", "base64"),
            ("base64_without_padding", "base64"),
            ("base64_urlsafe", "base64"),
            ("base64_with_spaces", "base64"),
            ("gcm_extra_fourth_part_ignored", "format"),
            ("gcm_trailing_separator", "format"),
        ],
    )
    def test_is_refused_whatever_the_sdk_does(self, name, reason):
        case = NEGATIVES[name]
        with pytest.raises(EnvelopeError) as caught:
            Session.load(case["serialized_session"]).open(case["envelope"])
        assert caught.value.reason == reason

    def test_no_case_of_the_vectors_is_forgotten(self):
        (marker,) = [
            mark
            for mark in type(self).test_is_refused_whatever_the_sdk_does.pytestmark
            if mark.name == "parametrize"
        ]
        assert [name for name, _ in marker.args[1]] == GCM_NEGATIVES

    @pytest.mark.parametrize("name", CBC_NEGATIVES)
    def test_nothing_of_cbc_is_accepted(self, name):
        case = NEGATIVES[name]
        with pytest.raises(ValueError, match="not a serialised"):
            Session.load(case["serialized_session"])
        same_id = Session(version="v1", session_id=case["envelope"].split("$")[1], key=bytes(32), nonce=bytes(12))
        with pytest.raises(EnvelopeError):
            same_id.open(case["envelope"])

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda text: text + "\n", id="newline at the end"),
            pytest.param(lambda text: text[:8] + "\n" + text[8:], id="newline inside"),
            pytest.param(lambda text: text + "=", id="padding too many"),
            pytest.param(lambda text: text + "====", id="a padding group too many"),
            pytest.param(lambda text: text[:-3] + "R==", id="other trailing bits for the same bytes"),
            pytest.param(lambda text: text + text, id="twice"),
            pytest.param(lambda text: text.replace("L", "Ｌ", 1), id="full-width letter"),
            pytest.param(lambda text: text.replace("L", "\0L", 1), id="null character"),
        ],
    )
    def test_only_one_spelling_of_base64_counts(self, damage):
        head, _, payload = NEGATIVES["valid"]["envelope"].rpartition("$")
        assert payload.endswith("Q==")
        with pytest.raises(EnvelopeError) as caught:
            fixed_session().open(f"{head}${damage(payload)}")
        assert caught.value.reason == "base64"

    def test_a_payload_that_is_not_utf8_is_refused(self):
        key, nonce = base64.b64decode(FIXED["aes_key_base64"]), base64.b64decode(FIXED["iv_base64"])
        payload = base64.b64encode(AESGCM(key).encrypt(nonce, "secrète".encode("latin-1"), key)).decode()
        with pytest.raises(EnvelopeError) as caught:
            fixed_session().open(f"v1${FIXED['session_id']}${payload}")
        assert caught.value.reason == "text"
        assert "secr" not in everything_said_by(caught.value)

    @given(st.text())
    def test_arbitrary_text_is_refused_and_nothing_else_happens(self, text):
        with pytest.raises(EnvelopeError):
            fixed_session().open(text)

    @given(st.text())
    def test_so_is_an_arbitrary_payload(self, text):
        with pytest.raises(EnvelopeError):
            fixed_session().open(f"v1${FIXED['session_id']}${text}")

    @given(data=st.data(), field=st.sampled_from(FIXED["fields"]), change=st.integers(1, 255))
    def test_every_change_of_one_byte_is_refused(self, data, field, change):
        head, _, payload = field["envelope"].rpartition("$")
        sealed = bytearray(base64.b64decode(payload))
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= change
        with pytest.raises(EnvelopeError) as caught:
            fixed_session().open(f"{head}${base64.b64encode(sealed).decode()}")
        assert caught.value.reason == "tag"


class TestSession:
    @given(st.text())
    def test_any_text_comes_back(self, text):
        session = Session.new()
        assert session.open(session.seal(text)) == text

    def test_a_new_one_has_the_documented_shape(self):
        session = Session.new()
        version, session_id, algorithm, key, nonce = session.dump().split("$")
        assert (version, algorithm) == ("v1", "AES_GCM")
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", session_id)
        assert (len(base64.b64decode(key)), len(base64.b64decode(nonce))) == (32, 12)

    @pytest.mark.parametrize(("version", "length"), [("v1", 724), ("v1_0.0.14", 731)])
    def test_its_session_key_has_the_documented_length(self, version, length):
        assert len(Session.new(version).session_key(PublicKey.parse(TOSS_PUBLIC_KEY))) == length

    def test_two_new_ones_share_nothing(self):
        first, second = (set(Session.new().dump().split("$")) for _ in range(2))
        assert first & second == {"v1", "AES_GCM"}

    def test_another_sessions_envelope_does_not_open(self):
        with pytest.raises(EnvelopeError) as caught:
            Session.new().open(Session.new().seal("김토스"))
        assert caught.value.reason == "session"

    def test_it_serves_one_call(self):
        session, public_key = Session.new(), PublicKey.parse(TOSS_PUBLIC_KEY)
        session.session_key(public_key)
        with pytest.raises(RuntimeError, match="one call"):
            session.session_key(public_key)

    def test_a_loaded_one_serves_no_further_call(self):
        with pytest.raises(RuntimeError, match="one call"):
            fixed_session().session_key(PublicKey.parse(TOSS_PUBLIC_KEY))

    def test_it_survives_our_database(self):
        session = Session.new("v1_0.0.14")
        envelope = session.seal("19930324")
        assert Session.load(session.dump()).open(envelope) == "19930324"

    @pytest.mark.parametrize("version", ["", "v1$", "$"])
    def test_a_version_that_would_break_the_envelope_is_refused(self, version):
        with pytest.raises(ValueError, match="separators"):
            Session.new(version)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda _: "", id="empty"),
            pytest.param(lambda text: text + "$", id="a part too many"),
            pytest.param(lambda text: text.rpartition("$")[0], id="a part too few"),
            pytest.param(lambda text: text.replace("AES_GCM", "AES_CBC"), id="CBC"),
            pytest.param(lambda text: text.replace("AES_GCM", ""), id="no algorithm"),
            pytest.param(lambda text: text.replace("v1", ""), id="no version"),
            pytest.param(lambda text: text + "AAAA", id="a nonce too long"),
            pytest.param(lambda text: text.replace("AAECAwQF", "", 1), id="a key too short"),
            pytest.param(lambda text: text.replace("=", ""), id="no padding"),
        ],
    )
    def test_a_damaged_serialised_one_is_refused_without_showing_it(self, damage):
        with pytest.raises(ValueError, match="not a serialised") as caught:
            Session.load(damage(FIXED["serialized_session"]))
        said = everything_said_by(caught.value)
        assert [name for name, secret in SECRETS.items() if secret in said] == []


class TestNothingLeaks:
    @pytest.mark.parametrize("show", [repr, str, lambda session: f"{session!r:>99}"])
    def test_a_session_shows_nothing(self, show):
        shown = show(fixed_session())
        assert [name for name, secret in SECRETS.items() if secret in shown] == []
        assert FIXED["session_id"] not in shown

    def test_nor_has_it_a_dictionary_for_reporters_to_print(self):
        assert not hasattr(fixed_session(), "__dict__")

    @pytest.mark.parametrize("name", GCM_NEGATIVES)
    def test_a_refused_envelope_is_not_shown(self, name):
        case = NEGATIVES[name]
        with pytest.raises(EnvelopeError) as caught:
            Session.load(case["serialized_session"]).open(case["envelope"])
        said = everything_said_by(caught.value)
        assert [name for name, secret in SECRETS.items() if secret in said] == []
        assert "rbtW9kNF" not in said  # how nearly all those payloads begin

    def test_a_text_that_cannot_be_sealed_is_not_shown(self):
        with pytest.raises(EnvelopeError) as caught:
            fixed_session().seal(SECRETS["plaintext"] + "\ud800")
        assert caught.value.reason == "text"
        assert SECRETS["plaintext"] not in everything_said_by(caught.value)

    def test_a_private_key_pasted_as_public_key_is_not_shown(self):
        secret = KEYS["test_rsa_2048"]["pkcs8_der_base64"]
        for text in (secret, pem(secret), pem(secret).replace("PUBLIC", "PRIVATE")):
            with pytest.raises(ValueError, match="not an RSA public key") as caught:
                PublicKey.parse(text)
            said = everything_said_by(caught.value)
            assert not any(line in said for line in re.findall(".{1,64}", secret))


class TestPublicKey:
    def test_the_default_is_the_key_toss_publishes(self):
        assert KEYS["toss_default"]["spki_der_base64"] == TOSS_PUBLIC_KEY
        assert PublicKey.parse(TOSS_PUBLIC_KEY).fingerprint == KEYS["toss_default"]["spki_sha256"]
        assert KEYS["toss_default"]["spki_sha256"].startswith("3c9b95d619baa276")

    @pytest.mark.parametrize(
        "spelling",
        [
            pytest.param(pem, id="PEM"),
            pytest.param(lambda text: f"\n{pem(text)}\n", id="PEM with blank lines"),
            pytest.param(lambda text: "\n".join(re.findall(".{1,76}", text)) + "\n", id="folded Base64"),
        ],
    )
    def test_other_spellings_give_the_same_key(self, spelling):
        assert PublicKey.parse(spelling(TOSS_PUBLIC_KEY)).fingerprint == KEYS["toss_default"]["spki_sha256"]

    @pytest.mark.parametrize(
        "text",
        ["", "김토스", TOSS_PUBLIC_KEY[:-8], TOSS_PUBLIC_KEY[:-2], "-----BEGIN PUBLIC KEY-----", pem("AAAA")],
        ids=["empty", "not Base64", "cut", "no padding", "PEM without end", "PEM of nothing"],
    )
    def test_what_is_no_key_is_refused(self, text):
        with pytest.raises(ValueError, match="not an RSA public key"):
            PublicKey.parse(text)

    def test_a_key_for_another_algorithm_is_refused(self):
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(ValueError, match="not an RSA public key"):
            PublicKey.parse(text)

    def test_a_short_key_is_refused(self):
        key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        text = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(ValueError, match="fewer than 2048 bits") as caught:
            PublicKey.parse(text)
        assert text.splitlines()[1] not in everything_said_by(caught.value)

    def test_a_private_key_in_any_form_is_refused(self):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            with pytest.raises(ValueError, match="not an RSA public key"):
                PublicKey.parse(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


class TestPublishedSample:
    """The sample answer in Toss's documentation proves that one nonce serves all fields (reference 4.9)."""

    SAMPLE = VECTORS["docs_samples"]
    NAMES = ("name", "birthday", "gender", "nationality", "ci")

    @pytest.mark.parametrize("name", NAMES)
    def test_has_the_length_our_envelope_would_have(self, name):
        field = self.SAMPLE["fields"][name]
        text = field.get("plaintext") or field["plaintext_prefix"].ljust(field["plaintext_bytes"], "0")
        ours = Session.new().seal(text).split("$")[2]
        assert len(ours) == len(field["payload_base64"])
        assert len(base64.b64decode(ours)) == field["bytes"]

    @pytest.mark.parametrize("name", NAMES)
    def test_was_sealed_under_one_keystream(self, name):
        field = self.SAMPLE["fields"][name]
        keystream = bytes.fromhex(self.SAMPLE["keystream_first_9_bytes_hex"])
        text = (field.get("plaintext") or field["plaintext_prefix"]).encode()
        payload = base64.b64decode(field["payload_base64"])
        assert bytes(a ^ b for a, b in zip(payload, keystream, strict=False))[: len(text)] == text

    def test_and_so_are_ours(self):
        session = Session.new()
        sealed = [base64.b64decode(session.seal(text).split("$")[2]) for text in ("19930324", "20000101")]
        difference = bytes(a ^ b for a, b in zip(*sealed, strict=True))[:8]
        assert difference == bytes(a ^ b for a, b in zip(b"19930324", b"20000101", strict=True))
