"""What must not be in a log (G11), and how it is recognised."""

import base64
import re
from collections.abc import Collection, Iterable

from sandbox.miniapps import DEFAULT_APP, MiniApp
from sandbox.personas import personas
from sandbox.state import TEST_CLIENT_SECRET

VAULT_KEY = base64.b64encode(bytes(range(32))).decode()
HASH_KEY = base64.b64encode(bytes(range(100, 132))).decode()
"""Those of the settings under test."""

PROBES = ("redaction-probe",)
"""Loggers with which tests of the redaction itself log secrets on purpose."""

MANY = 5000
"""A run of so many tests, in each process, has verified somebody, or the log is not where it is searched."""

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


def leaks(lines: Iterable[str], handed_out: Collection[str]) -> list[str]:
    """The lines that hold a secret."""
    known = secrets()
    return [
        line
        for line in lines
        if not line.startswith(PROBES)
        and (
            FORMS.search(line)
            or any(secret in line for secret in known)
            or any(word in handed_out for word in WORD.findall(line))
        )
    ]
