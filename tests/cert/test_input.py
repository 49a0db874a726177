"""What a mini-app or a partner may type: every value through the real door."""

import unicodedata
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from app.cert.outcome import KOREA
from app.cert.schemas import CompareRequest, PersonalRequest, StartRequest
from tests.scenarios import assert_problem

PERSON = {"requestType": "USER_PERSONAL", "name": "김토스", "phone": "01012345678", "birthday": "19930324"}


def parse(**changes: object) -> PersonalRequest:
    return PersonalRequest.model_validate(PERSON | changes)


def refused(**changes: object) -> str:
    """The texts of a refusal, none of which shows the value."""
    with pytest.raises(ValidationError) as caught:
        parse(**changes)
    shown = str(caught.value)
    for value in changes.values():
        if isinstance(value, str) and len(value.strip()) > 3 and value.isprintable():
            assert value not in shown
    return shown


NFD = unicodedata.normalize("NFD", "김토스")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("김토스", "김토스"),
        (NFD, "김토스"),
        ("  김토스 ", "김토스"),
        ("남궁 민수", "남궁 민수"),
        ("황보", "황보"),
        ("이", "이"),
        ("JOHANSSON EMMA", "JOHANSSON EMMA"),
        ("O'Connor", "O'Connor"),
        ("O’Connor", "O’Connor"),
        ("Mary-Jane Smith, Jr.", "Mary-Jane Smith, Jr."),
        ("마리아·호세", "마리아·호세"),
        ("Nguyễn Thị Minh", "Nguyễn Thị Minh"),
        ("李小龍", "李小龍"),
        ("佐々木", "佐々木"),
        ("Åsa Öberg", "Åsa Öberg"),
        ("Владимир", "Владимир"),
        ("محمد", "محمد"),
        ("नीरज", "नीरज"),
        ("가" * 80, "가" * 80),
        (unicodedata.normalize("NFD", "각" * 80), "각" * 80),
        ("A" * 80, "A" * 80),
    ],
)
def test_names_of_people_are_taken(name, read):
    assert parse(name=name).name == read


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\n",
        "가" * 81,
        "A" * 81,
        "A" * 10_000,
        "김토스1",
        "٣٤٥",
        "Henry Ⅷ",
        "김토스😀",
        "김\x00토스",
        "김\n토스",
        "김\t토스",
        "김\u200b토스",
        "김\u202e토스",
        "김\ue000토스",
        "김\ud800토스",
        "\udfff",
        "김\u00a0토스",
        "김_토스",
        "<b>김토스</b>",
        "김$토스",
        "김;DROP",
        '김"토스',
        "김\\토스",
        "a@b.kr",
        "...",
        "-'·",
        "\u0301",
        7,
        True,
        None,
        ["김토스"],
        {"first": "김"},
        b"\xff",
    ],
    ids=ascii,
)
def test_what_is_no_name_is_refused(name):
    assert "name" in refused(name=name)


@pytest.mark.parametrize("filler", ["\u3164", "\u115f", "\u1160", "\uffa0"], ids=ascii)
def test_an_invisible_name_is_refused(filler):
    refused(name=filler)


@pytest.mark.parametrize("phone", ["0101234567", "01012345678", "0212345678"])
def test_phones_have_ten_or_eleven_digits(phone):
    assert parse(phone=phone).phone == phone


@pytest.mark.parametrize(
    "phone",
    [
        "",
        "010123456",
        "010123456789",
        "010-1234-5678",
        "+821012345678",
        "010 1234 567",
        "0101234567a",
        "01012345678\n",
        "\n01012345678",
        "０１０１２３４５６７８",
        "٠١٠١٢٣٤٥٦٧٨",
        1012345678,
        10123456789,
        1.0e9,
        None,
        ["01012345678"],
    ],
    ids=ascii,
)
def test_what_is_no_phone_is_refused(phone):
    assert "phone" in refused(phone=phone)


def today() -> datetime:
    return datetime.now(UTC).astimezone(KOREA)


@pytest.mark.parametrize("birthday", ["19930324", "20000229", "19000101", "today"])
def test_birthdays_are_real_days(birthday):
    birthday = f"{today():%Y%m%d}" if birthday == "today" else birthday
    assert parse(birthday=birthday).birthday == birthday


@pytest.mark.parametrize(
    "birthday",
    [
        "",
        "18991231",
        "00000000",
        "19930230",
        "20230229",
        "19931301",
        "1993-03-24",
        "930324",
        "19930324\n",
        "１９９３０３２４",
        "tomorrow",
        "99991231",
        19930324,
        None,
    ],
    ids=ascii,
)
def test_what_is_no_birthday_is_refused(birthday):
    birthday = f"{today() + timedelta(days=2):%Y%m%d}" if birthday == "tomorrow" else birthday
    assert "birthday" in refused(birthday=birthday)


@pytest.mark.parametrize("missing", ["name", "phone", "birthday"])
def test_personal_data_are_whole_or_absent(missing):
    with pytest.raises(ValidationError, match=missing):
        TypeAdapter(StartRequest).validate_python({key: PERSON[key] for key in PERSON if key != missing})


def test_one_touch_takes_no_personal_data():
    for field in ("name", "phone", "birthday"):
        with pytest.raises(ValidationError, match="Extra inputs"):
            TypeAdapter(StartRequest).validate_python({"requestType": "USER_NONE", field: PERSON[field]})


def test_python_names_are_not_wire_names():
    with pytest.raises(ValidationError):
        TypeAdapter(StartRequest).validate_python({"request_type": "USER_NONE"})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"ci": None},
        {"ci": ""},
        {"ci": "x" * 201},
        {"ci": "가"},
        {"ci": "a b"},
        {"ci": "a\n"},
        {"di": "가"},
        {"di": ""},
        {"phone": "x"},
    ],
    ids=ascii,
)
def test_a_comparison_needs_something_that_can_be_compared(given):
    with pytest.raises(ValidationError):
        CompareRequest.model_validate(given)


@pytest.mark.parametrize("given", [{"ci": "x" * 200}, {"name": "김토스"}, {"birthday": "19930324"}, {"ci": "+/="}])
def test_any_one_thing_is_enough_for_a_comparison(given):
    assert CompareRequest.model_validate(given).model_dump(exclude_none=True) == given


@pytest.mark.parametrize(("field", "value"), [("name", "김토스1"), ("phone", "010-1234"), ("birthday", "19930230")])
async def test_bad_input_is_named_but_not_echoed_and_never_reaches_toss(bff, sandbox, field, value):
    answer = await bff.http.post("/api/v1/cert/requests", json=PERSON | {field: value})
    problem = assert_problem(answer, 422, "invalid_request")
    assert field in problem["errors"][0]["pointer"]
    assert value not in answer.text
    assert sandbox.state.count() == 0


async def test_a_pointer_points_at_the_field_in_the_body(bff):
    answer = await bff.http.post("/api/v1/cert/requests", json=PERSON | {"phone": "x"})
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/phone"]


async def test_every_taken_name_is_what_toss_gets(bff, sandbox):
    for name in (NFD, " O'Connor  Mary ", "가" * 80):
        verification = await bff.start(**{key: PERSON[key] for key in ("phone", "birthday")}, name=name)
        sent = sandbox.state.transaction(verification.tx_id).sent_person
        assert sent.name == unicodedata.normalize("NFC", name.strip())
