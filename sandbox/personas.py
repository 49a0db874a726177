"""The people who can approve a verification and log in. All of them are made up."""

import base64
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, repr=False)
class Persona:
    key: str
    label: str
    name: str
    birthday: str
    gender: str
    nationality: str
    age_group: str
    ci: str
    di: str
    phone: str
    email: str | None
    """None: this user never gave one."""
    uid: str
    """The 24 digits of the certificate's subject (reference 6)."""


def personas() -> dict[str, Persona]:
    people = (
        # Reference 2: what `test_` credentials get, whoever authenticates. Of CI and DI only the first 15
        # characters are public (Q11) and the age group is not documented; ADULT follows from the birthday.
        Persona(
            key="test_person",
            label="토스 테스트 인물 · Toss's documented test person",
            name="김토스",
            birthday="19930324",
            gender="FEMALE",
            nationality="LOCAL",
            age_group="ADULT",
            ci=_linking_text("ci test_person", prefix="CI0110000000001"),
            di=_linking_text("di test_person", prefix="DI0110000000001"),
            phone="01098760001",
            email="test.person@sandbox.invalid",
            uid="700200000000000000000001",
        ),
        Persona(
            key="man",
            label="네 글자 이름의 성인 남성 · adult man",
            name="선우하람",
            birthday="19850917",
            gender="MALE",
            nationality="LOCAL",
            age_group="ADULT",
            ci=_linking_text("ci man"),
            di=_linking_text("di man"),
            phone="01098760002",
            email="haram@sandbox.invalid",
            uid="700200000000000000000002",
        ),
        Persona(
            key="minor",
            label="미성년자 · minor",
            name="이미래",
            birthday="20140505",
            gender="FEMALE",
            nationality="LOCAL",
            age_group="MINOR",
            ci=_linking_text("ci minor"),
            di=_linking_text("di minor"),
            phone="01098760003",
            email=None,
            uid="700200000000000000000003",
        ),
        Persona(
            key="foreigner",
            label="외국인 · foreigner",
            name="JOHANSSON EMMA",
            birthday="19880611",
            gender="FEMALE",
            nationality="FOREIGNER",
            age_group="ADULT",
            ci=_linking_text("ci foreigner"),
            di=_linking_text("di foreigner"),
            phone="01098760004",
            email="emma@sandbox.invalid",
            uid="700200000000000000000004",
        ),
    )
    return {persona.key: persona for persona in people}


def _linking_text(seed: str, *, prefix: str = "") -> str:
    """88 characters: a CI is the Base64 form of 64 bytes; the documented DI is as long (reference 3.6)."""
    text = base64.b64encode(hashlib.sha512(seed.encode()).digest()).decode()
    return prefix + text[len(prefix) :]
