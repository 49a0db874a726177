"""Who knows the console's value, in whichever form it arrives (apps-in-toss reference 14.0)."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.callbacks.authorization import is_authentic
from sandbox.callbacks import AuthEncoding

VALUE = "toss:long-random-password"


def b64(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


CONFIGURED = {
    "user and password": VALUE,
    "Base64 of both": b64(VALUE),
    "not ASCII": "토스:비밀번호-열여섯글자",
    "Base64 of something not ASCII": b64("토스:비밀번호"),
    "with blanks inside": "toss long random password",
    "with a scheme of its own": "Basic long-random-password",
    "of letters that happen to be Base64": "abcdefghijklmnopqrst",
}


@pytest.mark.parametrize("configured", CONFIGURED.values(), ids=CONFIGURED)
@pytest.mark.parametrize("encoding", AuthEncoding)
def test_every_way_in_which_toss_may_send_it(configured, encoding):
    assert is_authentic([encoding.header(configured).encode()], configured)


@pytest.mark.parametrize("scheme", ["", "Basic ", "basic ", "BASIC  ", "bEaReR\t"])
def test_what_was_entered_in_base64_may_arrive_decoded(scheme):
    assert is_authentic([f" {scheme}{VALUE} ".encode()], b64(VALUE))


NEAR_MISSES = [
    [],
    [""],
    [" "],
    ["Basic"],
    ["Basic "],
    ["Bearer"],
    [VALUE, VALUE],
    [f"Basic {b64(VALUE)}", f"Basic {b64(VALUE)}"],
    ["", VALUE],
    [f"{VALUE}, {VALUE}"],
    [VALUE[:-1]],
    [VALUE + "x"],
    [VALUE.upper()],
    [b64(VALUE)[:-1]],
    [b64(VALUE).rstrip("=")],
    [b64(VALUE) + "="],
    [b64(b64(VALUE))],
    [f"Basic Basic {b64(VALUE)}"],
    [f"Basic{b64(VALUE)}"],
    [f"Digest {b64(VALUE)}"],
    [f"Token {VALUE}"],
    [f"Basic: {VALUE}"],
    [f"Basic\xa0{VALUE}"],
    ["toss"],
    ["long-random-password"],
    ["undefined"],
    ["None"],
]


@pytest.mark.parametrize("headers", NEAR_MISSES)
def test_near_misses(headers):
    assert not is_authentic([header.encode() for header in headers], VALUE)


def test_an_empty_value_admits_nobody():
    for header in ("", "Basic ", "Basic", b64("")):
        assert not is_authentic([header.encode()], "")


@pytest.mark.parametrize(
    ("configured", "header"),
    [
        ("YWJjZGVmZw==", "abcdefg"),  # 7 bytes: too few to be a secret
        ("YWJjZGVmZ2g", "abcdefgh"),  # no padding: not Base64
        ("YWJjZGVmZ2j=", "abcdefgh"),  # another spelling of the same bytes
        ("YWJj ZGVmZ2g=", "abcdefgh"),
        ("YWJj-_mZ2hpamtsbQ==", "abc\xfb\xf9\x99ghijklm"),  # URL-safe letters
    ],
)
def test_only_proper_base64_of_enough_is_decoded(configured, header):
    assert not is_authentic([header.encode("latin-1")], configured)
    assert is_authentic([configured.encode()], configured)


def test_eight_bytes_are_enough():
    assert is_authentic([b"abcdefgh"], "YWJjZGVmZ2g=")


def forms(configured: str) -> set[bytes]:
    entered_in_base64 = {VALUE.encode()} if configured == b64(VALUE) else set()
    return {configured.encode(), base64.b64encode(configured.encode())} | entered_in_base64


SCHEMES = st.sampled_from(["", "Basic ", "bearer ", "Digest ", "Basic", "  ", "Bearer Basic "])
TEXTS = st.one_of(
    st.sampled_from([VALUE, b64(VALUE), b64(b64(VALUE)), VALUE[1:], ""]),
    st.text(st.characters(max_codepoint=255), max_size=60),
    st.text(alphabet="toslngradmpwe:-", max_size=30),
)


@given(SCHEMES, TEXTS, st.sampled_from(["", " ", "=", "x"]), st.sampled_from([VALUE, b64(VALUE)]))
def test_nothing_else_passes(scheme, text, rest, configured):
    header = f"{scheme}{text}{rest}".encode("latin-1")
    bare = header.strip(b" \t")
    without = re.sub(rb"\A(?:[Bb][Aa][Ss][Ii][Cc]|[Bb][Ee][Aa][Rr][Ee][Rr])[ \t]+", b"", bare)
    assert is_authentic([header], configured) is bool({bare, without} & forms(configured))


@given(st.binary(max_size=80))
def test_no_bytes_break_it(header):
    assert is_authentic([header], VALUE) is (header.strip(b" \t") in forms(VALUE))
