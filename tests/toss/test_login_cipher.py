"""The fields of Toss login against the reference's vectors (A.3), and against all that must be refused."""

import base64
import itertools
import json
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from app.toss.crypto import MAX_LOGIN_FIELD, EnvelopeError, LoginFieldCipher
from app.toss.login import Member

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "toss-login.json").read_text(encoding="utf-8"))
KEY = base64.b64decode(VECTORS["key_base64"])
OTHER_KEY = bytes(range(100, 132))
AAD, OTHER_AAD = VECTORS["aad"], "토스"
NONCE = base64.b64decode(VECTORS["iv_base64"])
NAME, BIRTHDAY, GENDER = (vector["field"] for vector in VECTORS["fields"])
PLAIN = VECTORS["fields"][0]["text"]


def seal(text: str | bytes, *, key: bytes = KEY, aad: str = AAD) -> str:
    plaintext = text.encode() if isinstance(text, str) else text
    return base64.b64encode(NONCE + AESGCM(key).encrypt(NONCE, plaintext, aad.encode())).decode()


def cipher(*keys: bytes, aads: tuple[str, ...] = (AAD,)) -> LoginFieldCipher:
    return LoginFieldCipher(keys=keys or (KEY,), aads=aads)


def refusal(field: object, opener: LoginFieldCipher | None = None) -> str:
    """Why a field is refused. Neither the error nor what it drags along may tell more than that."""
    with pytest.raises(EnvelopeError) as caught:
        (opener or cipher()).open(field)
    assert everything_said_by(caught.value).isdisjoint(shown_forms(field))
    return caught.value.reason


def everything_said_by(error: BaseException) -> "Said":
    said, links = Said(), [error]
    while links:
        one = links.pop()
        said.texts += [str(one), repr(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one)]
        if isinstance(one, UnicodeError):
            said.texts.append(repr(one.object))
        links += [linked for linked in (one.__cause__, one.__context__) if linked is not None]
    return said


class Said:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def isdisjoint(self, secrets: set[str]) -> bool:
        return not any(secret in text for secret in secrets for text in self.texts)


def shown_forms(field: object) -> set[str]:
    forms = {VECTORS["key_base64"], repr(KEY)[2:-1], KEY.hex(), repr(OTHER_KEY)[2:-1], PLAIN}
    return forms | ({field} if isinstance(field, str) and len(field) > 3 else set())


# --- What opens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["fields"], ids=lambda vector: vector["text"])
def test_the_vectors_of_the_reference_open(vector):
    assert cipher().open(vector["field"]) == vector["text"]
    assert seal(vector["text"]) == vector["field"]


@pytest.mark.parametrize("keys", [(KEY,), (OTHER_KEY,), (KEY, OTHER_KEY), (OTHER_KEY, KEY)])
@pytest.mark.parametrize("aads", [(AAD,), (OTHER_AAD,), (AAD, OTHER_AAD), (OTHER_AAD, AAD)])
def test_keys_and_additional_data_are_tried_in_every_combination(keys, aads):
    opener = cipher(*keys, aads=aads)
    for key, aad in itertools.product((KEY, OTHER_KEY), (AAD, OTHER_AAD)):
        field = seal(PLAIN, key=key, aad=aad)
        if key in keys and aad in aads:
            assert opener.open(field) == PLAIN
        else:
            assert refusal(field, opener) == "tag"


def test_empty_additional_data_are_data_too():
    assert cipher(aads=("",)).open(seal(PLAIN, aad="")) == PLAIN
    assert refusal(NAME, cipher(aads=("",))) == "tag"


@given(st.text(max_size=200))
def test_any_text_comes_back(text):
    assert cipher(OTHER_KEY, KEY).open(seal(text)) == text


def test_a_field_may_be_as_long_as_the_limit_and_no_longer():
    longest = MAX_LOGIN_FIELD // 4 * 3 - 28
    assert len(seal("x" * longest)) == MAX_LOGIN_FIELD
    assert cipher().open(seal("x" * longest)) == "x" * longest
    assert refusal(seal("x" * (longest + 1))) == "format"


# --- What does not ----------------------------------------------------------------------------------------


def test_without_a_key_nothing_opens():
    assert refusal(NAME, LoginFieldCipher(keys=(), aads=(AAD,))) == "tag"
    assert refusal(NAME, LoginFieldCipher(keys=(KEY,), aads=())) == "tag"


@pytest.mark.parametrize("aad", ["", "toss", "TOSS ", "TOS", "TOSS\0", "ＴＯＳＳ"])
def test_other_additional_data_open_nothing(aad):
    assert refusal(NAME, cipher(aads=(aad,))) == "tag"


@given(st.sampled_from([NAME, BIRTHDAY, GENDER]), st.data(), st.integers(0, 7))
def test_every_altered_bit_is_refused(field, data, bit):
    box = bytearray(base64.b64decode(field))
    box[data.draw(st.integers(0, len(box) - 1))] ^= 1 << bit
    assert refusal(base64.b64encode(box).decode()) == "tag"


@pytest.mark.parametrize("field", [NAME, BIRTHDAY, GENDER])
def test_every_truncation_is_refused(field):
    box = base64.b64decode(field)
    for length in range(len(box)):
        for part in (box[:length], box[len(box) - length :]):
            assert refusal(base64.b64encode(part).decode()) == ("format" if length < 28 else "tag")


@pytest.mark.parametrize("field", [None, True, 0, 1.5, b"", NAME.encode(), [NAME], {"field": NAME}, {}])
def test_what_is_no_text_is_refused(field):
    assert refusal(field) == "format"


@pytest.mark.parametrize(
    "field",
    [
        PLAIN,
        "MALE!",
        NAME.rstrip("="),
        NAME + "=",
        NAME + "\n",
        f" {NAME}",
        NAME[:8] + "\r\n" + NAME[8:],
        NAME.replace("/", "_"),
        NAME[:-3] + "R==" if NAME[-3] != "R" else NAME[:-3] + "Q==",
        NAME.replace("Q", "Ｑ", 1),
        NAME + "\0",
        "\ud800" + NAME,
    ],
)
def test_what_is_not_base64_in_its_one_spelling_is_refused(field):
    assert field != NAME
    assert refusal(field) == "base64"


@pytest.mark.parametrize("text", ["", "null", "MALE", "A" * 4, "AAAA" * 9])
def test_what_is_shorter_than_nonce_and_tag_is_refused(text):
    assert refusal(text) == "format"


@pytest.mark.parametrize(
    "plaintext", [b"\xff", "홍길동".encode("euc-kr"), b"secr\xe8te", b"\xed\xa0\x80", b"\xc0\x80"]
)
def test_a_plaintext_that_is_not_utf8_is_refused_unshown(plaintext):
    field = seal(plaintext)
    with pytest.raises(EnvelopeError) as caught:
        cipher().open(field)
    assert caught.value.reason == "text"
    said = everything_said_by(caught.value)
    assert said.isdisjoint({repr(plaintext)[2:-1], field, *shown_forms(field)})


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_arbitrary_text_is_refused_and_nothing_else_happens(text):
    assert refusal(text) in ("format", "base64", "tag")


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_is_refused_at_the_start_unshown(length):
    """The reference knows 32 bytes only (6.5); a shorter one would make another cipher of it."""
    key = (b"K3y-" * 9)[:length]
    with pytest.raises(ValueError, match="32") as caught:
        cipher(key)
    assert everything_said_by(caught.value).isdisjoint({"K3y-"})


def test_a_cipher_does_not_show_its_keys():
    opener = cipher(KEY, OTHER_KEY)
    assert not any(form in repr(opener) + repr(vars(opener)) for form in shown_forms(NAME))


# --- Field by field (G3) ----------------------------------------------------------------------------------


def test_a_field_that_does_not_open_costs_that_field_alone():
    closed = {
        "name": NAME,
        "birthday": seal("19900101", key=OTHER_KEY),
        "gender": 5,
        "ci": "no base64",
        "email": seal(b"\xff"),
        "phone": seal("", aad=AAD),
    }
    member = Member(user_key=1, scopes=(), agreed_terms=(), closed=closed)
    profile = member.open(cipher())
    assert profile.personal == {"name": PLAIN, "phone": ""}
    assert set(profile.unreadable) == {"birthday", "gender", "ci", "email"}
    assert PLAIN not in repr(profile)
    assert NAME not in repr(member)
