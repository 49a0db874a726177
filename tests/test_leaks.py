"""G11 over the whole run: pytest writes everything that is logged, at DEBUG and unredacted, into one file, and
the servers that tests start write there too. This test runs last and searches it."""

import re
from pathlib import Path

from sandbox.miniapps import DEFAULT_APP, MiniApp
from sandbox.personas import personas
from sandbox.state import TEST_CLIENT_SECRET
from tests.conftest import HASH_KEY, VAULT_KEY

PROBES = ("redaction-probe",)
"""Loggers with which tests of the redaction itself log secrets on purpose."""

MANY = 100
"""A run of so many tests has verified somebody, or the log is not where it is searched."""

FORMS = re.compile(
    r"v1[\w.]*\$[0-9a-f-]{36}\$"  # envelopes and session keys
    r"|AES_GCM\$"
    r"|eyJ[\w-]{10,}\."  # JSON web tokens
    r"|[Bb]earer [\w-]{8,}"
    r"|\b(?:vt|sk|st)_[\w-]{20,}"
    r"|MII[\w+/]{40,}"
)


WORD = re.compile(r"[\w-]{9,}")
"""What Toss hands out is one: codes, tokens, anonymous keys, and userKeys, which look like any other number."""


def secrets() -> set[str]:
    people = personas().values()
    of_people = {
        value
        for one in people
        for value in (one.ci, one.di, one.name, one.birthday, one.uid, one.phone, one.email)
        if value is not None
    }
    app = MiniApp(name=DEFAULT_APP)
    keys = {app.decryption_key, app.second_decryption_key}
    return of_people | keys | {TEST_CLIENT_SECRET, HASH_KEY, VAULT_KEY, "01012345678"}


def test_the_whole_run_has_logged_nothing_secret(request, handed_out):
    log = Path(request.config.option.log_file)
    lines = [line for line in log.read_text("utf-8").splitlines() if not line.startswith(PROBES)]
    assert any("verification_result_stored" in line for line in lines) or request.session.testscollected < MANY
    known = secrets()
    leaks = [
        line
        for line in lines
        if FORMS.search(line)
        or any(secret in line for secret in known)
        or not handed_out.isdisjoint(WORD.findall(line))
    ]
    assert leaks == []
    if request.session.testscollected >= MANY:
        assert any("logged_in" in line for line in lines)
        assert handed_out


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
