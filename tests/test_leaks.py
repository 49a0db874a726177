"""What the search of the whole run's log (`nothing_secret_is_logged` in conftest) finds."""

import pytest

from tests.leaks import FORMS, WORD, leaks, secrets


def test_the_search_finds_what_it_looks_for():
    for leak in (
        "v1$71c3d6cd-6a74-48a8-8ab2-b48e6133ae6f$Q0U7",
        "Authorization: Bearer abcdefghij",
        "token=vt_A87U92A99OJVaAs40EBg169BKqJU1Isn3E4G8t9xWPM",
        "token=st_A87U92A99OJVaAs40EBg169BKqJU1Isn3E4G8t9xWPM",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln",
    ):
        assert FORMS.search(leak)
    assert {"김토스", "haram@sandbox.invalid"} < secrets()
    assert WORD.findall("userKey=443731103, 'code': \"abc_DEF-123456\"") == ["443731103", "abc_DEF-123456"]


@pytest.mark.parametrize("line", ["user 김토스", "code=abc_DEF-123456", "Authorization: Bearer abcdefghij"])
def test_a_leak_is_a_line_that_holds_a_secret(line):
    harmless = ["app.request INFO request_finished", "redaction-probe INFO 김토스"]
    assert leaks([*harmless, line], {"abc_DEF-123456"}) == [line]
