"""Which Authorization headers pass for the console's value, in every form that was seen, and no other (14.0)."""

import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.callbacks.authorization import is_authentic
from sandbox.callbacks import AuthEncoding

VALUE = "toss:Xy7-kf93jLq0_aPz"


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


@pytest.mark.parametrize("encoding", list(AuthEncoding))
@pytest.mark.parametrize("configured", [VALUE, encoded(VALUE), "값:한글도-되는-비밀번호"])
def test_every_form_that_was_seen_passes(encoding, configured):
    assert is_authentic([encoding.header(configured).encode()], configured)


@pytest.mark.parametrize(
    "header",
    [f"BASIC {VALUE}", f"bearer   {encoded(VALUE)}", f"Basic\t{VALUE}", f"  Basic {VALUE}  ", f"{VALUE} ", VALUE],
)
def test_blanks_and_letter_case_of_the_scheme_do_not_matter(header):
    assert is_authentic([header.encode()], VALUE)


def test_what_was_entered_as_base64_may_come_decoded():
    assert is_authentic([f"Basic {VALUE}".encode()], encoded(VALUE))


def test_a_value_that_begins_with_a_scheme_word_is_compared_as_a_whole_too():
    assert is_authentic([f"Basic {VALUE}".encode()], f"Basic {VALUE}")


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "Basic",
        "Basic ",
        "Bearer",
        VALUE[:-1],
        VALUE + "x",
        VALUE.upper(),
        f"Digest {VALUE}",
        f"Basic Basic {VALUE}",
        f"Basic {encoded(encoded(VALUE))}",
        f"Basic {encoded(VALUE)[:-2]}",
        f"{VALUE},{VALUE}",
    ],
)
def test_near_misses_are_refused(header):
    assert not is_authentic([header.encode()], VALUE)


def test_without_exactly_one_header_it_is_refused():
    assert not is_authentic([], VALUE)
    assert not is_authentic([VALUE.encode(), VALUE.encode()], VALUE)


@pytest.mark.parametrize("configured", ["", "  "])
@pytest.mark.parametrize("header", [b"", b" ", b"Basic ", b"Basic"])
def test_an_empty_value_opens_nothing(configured, header):
    assert not is_authentic([header], configured)


def test_what_a_short_value_decodes_to_does_not_serve():
    assert not is_authentic([b"i\xb7\x1d"], "abcd")


@given(header=st.binary(max_size=60), configured=st.text(min_size=8, max_size=40))
def test_nothing_else_passes(header, configured):
    value = configured.strip().encode()
    assume(value)
    known = {value, base64.b64encode(value)}
    words = header.split(maxsplit=1)
    rest = words[1].strip() if len(words) == 2 and words[0].lower() in (b"basic", b"bearer") else None
    assume(header.strip() not in known and rest not in known)
    try:
        decoded = base64.b64decode(value, validate=True).strip()
    except ValueError:
        decoded = None
    assume(decoded is None or decoded not in (header.strip(), rest))
    assert not is_authentic([header], configured)
