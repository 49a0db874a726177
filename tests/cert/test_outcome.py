"""Rules about an opened result: age, names, birthdays."""

import unicodedata
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cert.outcome import KOREA, AgeGroup, Identity, age_of, parse_birthday
from app.person import mask_name, normalize_name

ADULT, MINOR, UNKNOWN = AgeGroup.ADULT, AgeGroup.MINOR, AgeGroup.UNKNOWN


def age(at: datetime, rule="by_date", **personal: str):
    return age_of(Identity(personal, ()), at=at, rule=rule)


def noon(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, 12, tzinfo=KOREA)


@pytest.mark.parametrize(
    ("birthday", "on", "by_date", "by_year"),
    [
        ("20070324", (2026, 3, 23), MINOR, ADULT),
        ("20070324", (2026, 3, 24), ADULT, ADULT),
        ("20070324", (2026, 3, 25), ADULT, ADULT),
        ("20070324", (2025, 12, 31), MINOR, MINOR),
        ("20070324", (2026, 1, 1), MINOR, ADULT),
        ("20071231", (2026, 1, 1), MINOR, ADULT),
        ("20071231", (2026, 12, 31), ADULT, ADULT),
        ("20080101", (2026, 12, 31), MINOR, MINOR),
        ("20070101", (2026, 1, 1), ADULT, ADULT),
        # Born on 29 February: 19 years later there is none.
        ("20080229", (2027, 2, 28), MINOR, ADULT),
        ("20080229", (2027, 3, 1), ADULT, ADULT),
        ("19930324", (2026, 1, 1), ADULT, ADULT),
        ("20300101", (2026, 1, 1), MINOR, MINOR),
        ("19000101", (2026, 1, 1), ADULT, ADULT),
    ],
)
def test_adults_are_nineteen_by_either_rule(birthday, on, by_date, by_year):
    assert age(noon(*on), birthday=birthday).derived is by_date
    assert age(noon(*on), "by_year", birthday=birthday).derived is by_year


@pytest.mark.parametrize(
    ("utc", "derived"),
    [
        (datetime(2026, 3, 23, 14, 59, 59, tzinfo=UTC), MINOR),
        (datetime(2026, 3, 23, 15, 0, tzinfo=UTC), ADULT),  # midnight in Korea
    ],
)
def test_a_day_begins_in_korea(utc, derived):
    assert age(utc, birthday="20070324").derived is derived


def test_a_year_begins_in_korea():
    assert age(datetime(2025, 12, 31, 14, 59, tzinfo=UTC), "by_year", birthday="20071231").derived is MINOR
    assert age(datetime(2025, 12, 31, 15, 0, tzinfo=UTC), "by_year", birthday="20071231").derived is ADULT


@pytest.mark.parametrize(
    ("said", "stated"),
    [
        ({"ageGroup": "ADULT"}, ADULT),
        ({"ageGroup": "MINOR"}, MINOR),
        ({}, UNKNOWN),
        ({"ageGroup": ""}, UNKNOWN),
        ({"ageGroup": "adult"}, UNKNOWN),
        ({"ageGroup": "ADULT "}, UNKNOWN),
        ({"ageGroup": "UNKNOWN"}, UNKNOWN),
        ({"ageGroup": "SENIOR"}, UNKNOWN),
    ],
)
def test_what_toss_does_not_clearly_say_is_unknown_never_adult(said, stated):
    assert age(noon(2026, 1, 1), birthday="19930324", **said).stated is stated


@pytest.mark.parametrize(
    ("said", "birthday", "disagrees"),
    [
        ("ADULT", "19930324", False),
        ("MINOR", "20140505", False),
        ("ADULT", "20140505", True),
        ("MINOR", "19930324", True),
        ("", "20140505", False),
        ("ADULT", "", False),
        ("ADULT", "19930230", False),
    ],
)
def test_a_disagreement_takes_two_who_say_something(said, birthday, disagrees):
    assert age(noon(2026, 1, 1), ageGroup=said, birthday=birthday).disagrees is disagrees


@pytest.mark.parametrize(
    ("text", "birthday"),
    [
        ("19930324", date(1993, 3, 24)),
        ("20000229", date(2000, 2, 29)),
        ("20240229", date(2024, 2, 29)),
        ("00010101", date(1, 1, 1)),
        ("19000229", None),
        ("20230229", None),
        ("19930431", None),
        ("19931301", None),
        ("19930001", None),
        ("19930300", None),
        ("00000101", None),
        ("1993324", None),
        ("199303240", None),
        ("1993-3-4", None),
        ("1993 324", None),
        (" 1993032", None),
        ("+1993032", None),
        ("１９９３０３２４", None),
        ("١٩٩٣٠٣٢٤", None),
        ("1993032٤", None),
        ("", None),
        ("null", None),
    ],
)
def test_a_birthday_is_a_real_day_in_eight_ascii_digits(text, birthday):
    assert parse_birthday(text) == birthday


@given(st.dates())
def test_every_day_of_the_calendar_is_a_birthday(day):
    assert parse_birthday(f"{day.year:04}{day.month:02}{day.day:02}") == day


@given(st.text(alphabet="0123456789 +-٤４", max_size=9))
def test_no_text_breaks_the_reading_of_a_birthday(text):
    parsed = parse_birthday(text)
    assert parsed is None or f"{parsed.year:04}{parsed.month:02}{parsed.day:02}" == text


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("김토스", "김*스"),
        ("선우하람", "선**람"),
        ("이솔", "이*"),
        ("이", "*"),
        ("남궁 민수", "남* *수"),
        ("MARY ANN", "M*** **N"),
        ("JOHANSSON EMMA", "J******** ***A"),
        ("O'Connor", "O******r"),
        ("Jo", "J*"),
        ("J o", "J *"),
        ("", ""),
        ("  ", "  "),
        ("李小龍", "李*龍"),
    ],
)
def test_a_masked_name_shows_its_ends_and_its_spaces(name, masked):
    assert mask_name(name) == masked


@given(st.text(alphabet="가힣aZ *\u3000\n·'😀", max_size=20))
def test_a_mask_never_shows_more_than_two_letters(name):
    masked = mask_name(name)
    assert len(masked) == len(name)
    kept = [index for index, letter in enumerate(masked) if letter != "*" and not letter.isspace()]
    assert len(kept) <= 2
    assert all(masked[index] == name[index] for index in kept)


def test_a_decomposed_name_is_masked_like_a_composed_one():
    assert mask_name(unicodedata.normalize("NFD", "김토스")) == "김*스"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("김토스", unicodedata.normalize("NFD", "김토스")),
        ("Nguyễn", unicodedata.normalize("NFD", "Nguyễn")),
        ("Emma Johansson", "EMMA  JOHANSSON"),
        (" 김토스\n", "김토스"),
        ("Straße", "STRASSE"),
        ("J\u00a0Smith", "J Smith"),
    ],
)
def test_one_name_has_one_spelling(one, other):
    assert normalize_name(one) == normalize_name(other)


@pytest.mark.parametrize(("one", "other"), [("김토스", "김토수"), ("MARY ANN", "MARYANN"), ("José", "Jose")])
def test_different_names_stay_different(one, other):
    assert normalize_name(one) != normalize_name(other)


def test_an_identity_survives_its_storing_and_shows_nothing():
    identity = Identity({"name": "김토스", "ci": 'CI"\\\n'}, ("di",))
    assert Identity.load(identity.dump()) == identity
    assert "김토스" not in repr(identity) + repr([identity])
