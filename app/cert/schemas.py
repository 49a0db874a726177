"""Toss Cert on our wire: camelCase JSON, input checks, what each door shows."""

import re
import unicodedata
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from app.cert.outcome import KOREA, AgeGroup, parse_birthday
from app.cert.service import CheckedPerson, Comparison, Evidence, Retrieved, Source, Started
from app.cert.tables import Verification
from app.person import mask_name
from app.settings import DisclosedField
from app.toss.cert import RequestStatus
from app.wire import Input, Wire

MAX_NAME = 80
PHONE = "^[0-9]{10,11}$"
MAX_LINKING_TEXT = 200
"""CI and DI have 88 characters in the samples; the length is not promised (toss-cert reference 3.6)."""
NAME_MARKS = frozenset(" .,'’-·")
"""What stands between the letters of a name: O'Connor, Mary-Jane, 마리아·호세, Smith, J."""
INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0")
"""Hangul fillers: letters to Unicode, nothing to the eye."""
EARLIEST_BIRTHDAY = date(1900, 1, 1)


def _person_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip())
    if not name or len(name) > MAX_NAME:
        raise ValueError(f"must have 1 to {MAX_NAME} letters")
    if INVISIBLE & set(name):
        raise ValueError("must be visible")
    has_letter = any(unicodedata.category(mark).startswith("L") for mark in name)
    # Letters and the marks that combine with them, of any script: 김토스, O'Connor, Nguyễn, 李小龍.
    if not has_letter or not all(mark in NAME_MARKS or unicodedata.category(mark)[0] in "LM" for mark in name):
        raise ValueError("must be a person's name: letters, spaces, and . , ' ’ - ·")
    return name


def _phone(text: str) -> str:
    if not re.fullmatch(PHONE, text):
        raise ValueError("must be 10 or 11 digits and nothing else")
    return text


def _birthday(text: str) -> str:
    birthday = parse_birthday(text)
    if birthday is None or not EARLIEST_BIRTHDAY <= birthday <= datetime.now(UTC).astimezone(KOREA).date():
        raise ValueError("must be a real day, YYYYMMDD, not in the future")
    return text


def _printable(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("must be printable ASCII")
    return text


PersonName = Annotated[str, Field(min_length=1, max_length=MAX_NAME * 3), AfterValidator(_person_name)]
# The patterns are for the document; what is wrong is said in words by the validators.
Phone = Annotated[str, AfterValidator(_phone), Field(json_schema_extra={"pattern": PHONE})]
Birthday = Annotated[
    str, AfterValidator(_birthday), Field(description="YYYYMMDD", json_schema_extra={"pattern": "^[0-9]{8}$"})
]
LinkingText = Annotated[str, Field(min_length=1, max_length=MAX_LINKING_TEXT), AfterValidator(_printable)]


class OneTouchRequest(Input):
    """원터치 인증: no personal data is sent."""

    request_type: Literal["USER_NONE"] = "USER_NONE"


class PersonalRequest(Input):
    """개인정보 기반 인증."""

    request_type: Literal["USER_PERSONAL"]
    name: PersonName
    phone: Phone
    birthday: Birthday


def _request_type(body: Any) -> str | None:  # noqa: ANN401 - whatever JSON came
    request_type = body.get("requestType", "USER_NONE") if isinstance(body, dict) else None
    return request_type if isinstance(request_type, str) else None


StartRequest = Annotated[
    Annotated[OneTouchRequest, Tag("USER_NONE")] | Annotated[PersonalRequest, Tag("USER_PERSONAL")],
    Discriminator(_request_type),
]


class ClaimRequest(Input):
    verification_token: str = Field(min_length=1, max_length=200)


class CompareRequest(Input):
    """At least one of them."""

    ci: LinkingText | None = None
    di: LinkingText | None = None
    name: PersonName | None = None
    birthday: Birthday | None = None

    @model_validator(mode="after")
    def has_something_to_compare(self) -> Self:
        if not any(value for _, value in self):
            raise ValueError("needs ci, di, name or birthday")
        return self


class Launch(Wire):
    """Ways to open the Toss app outside a mini-app; each is absent when Toss gave none."""

    app_scheme: str | None = None
    android_app_uri: str | None = None
    ios_app_uri: str | None = None
    auth_url: str | None = None


class StartedBody(Wire):
    tx_id: str
    request_type: str
    requested_at: datetime
    expires_at: datetime = Field(
        description="The latest moment at which the user can still finish; the status is the truth"
    )
    launch: Launch
    verification_token: str | None = Field(
        None,
        description="Shows that this verification is yours. Given out once; absent where a login session shows it",
    )

    @classmethod
    def of(cls, started: Started) -> Self:
        row, links = started.verification, started.links
        return cls(
            tx_id=row.tx_id,
            request_type=row.request_type,
            requested_at=row.requested_at,
            expires_at=row.expires_at,
            launch=Launch(
                app_scheme=links.app_scheme,
                android_app_uri=links.android_app_uri,
                ios_app_uri=links.ios_app_uri,
                auth_url=links.auth_url,
            ),
            verification_token=started.token,
        )


class StatusBody(Wire):
    tx_id: str
    status: RequestStatus
    requested_at: datetime
    expires_at: datetime

    @classmethod
    def of(cls, row: Verification) -> Self:
        return cls(
            tx_id=row.tx_id,
            status=RequestStatus(row.status),
            requested_at=row.requested_at,
            expires_at=row.expires_at,
        )


class Retrieval(Wire):
    """Where this answer came from, and how many reads Toss would still allow."""

    source: Source = Field(
        description="READ: fetched from Toss now. LAST_READ: the same, and it was the last permitted read. "
        "RECOVERED: opened now from an answer that an earlier, interrupted call left. STORED: from our store"
    )
    reads_left: int

    @classmethod
    def of(cls, retrieved: Retrieved) -> Self:
        return cls(source=retrieved.source, reads_left=max(0, retrieved.verification.reads_left))


class AgeBody(Wire):
    stated: AgeGroup = Field(description="What Toss says; UNKNOWN when it says nothing")
    derived: AgeGroup = Field(description="What the birthday says under `rule`, at the time of completion")
    rule: str
    disagrees: bool

    @classmethod
    def of(cls, retrieved: Retrieved) -> Self:
        age = retrieved.age
        return cls(stated=age.stated, derived=age.derived, rule=age.rule, disagrees=age.disagrees)


class Outcome(Wire):
    """Only what the operator chose to disclose (`BFF_CERT__DISCLOSED_FIELDS`)."""

    masked_name: str | None = None
    name: str | None = None
    birthday: str | None = None
    gender: str | None = None
    nationality: str | None = None
    age_group: AgeGroup | None = Field(None, description="What Toss says. UNKNOWN must not pass for ADULT")
    age_group_disagrees: bool | None = Field(
        None, description="True when the birthday says otherwise; given with ageGroup"
    )
    completed_at: datetime | None = None


class OutcomeBody(Wire):
    tx_id: str
    outcome: Outcome
    unreadable_fields: list[str] = Field(
        default_factory=list, description="Disclosed fields that came damaged and could not be opened"
    )
    retrieval: Retrieval

    @classmethod
    def of(cls, retrieved: Retrieved, *, disclosed: frozenset[DisclosedField]) -> Self:
        personal, age = retrieved.identity.personal, retrieved.age
        name = personal.get("name")
        available: dict[DisclosedField, Any] = {
            DisclosedField.MASKED_NAME: mask_name(name) if name is not None else None,
            DisclosedField.NAME: name,
            DisclosedField.BIRTHDAY: personal.get("birthday"),
            DisclosedField.GENDER: personal.get("gender"),
            DisclosedField.NATIONALITY: personal.get("nationality"),
            DisclosedField.AGE_GROUP: age.stated,
            DisclosedField.COMPLETED_AT: retrieved.verification.completed_at,
        }
        shown = {field.value: value for field, value in available.items() if field in disclosed}
        if DisclosedField.AGE_GROUP in disclosed:
            shown["ageGroupDisagrees"] = age.disagrees
        sources = {"name" if field is DisclosedField.MASKED_NAME else field.value for field in disclosed}
        return cls(
            tx_id=retrieved.verification.tx_id,
            outcome=Outcome.model_validate(shown),
            unreadable_fields=[field for field in retrieved.identity.unreadable if field in sources],
            retrieval=Retrieval.of(retrieved),
        )


class IdentityBody(Wire):
    """Each field is null when Toss left it out or when it could not be opened (`unreadableFields`)."""

    ci: str | None
    di: str | None
    name: str | None
    birthday: str | None
    gender: str | None
    nationality: str | None
    ci2: str | None
    ci_update: str | None


class SignatureBody(Wire):
    """How the user's signature fared. Without pinned CA files `chain` and `policy` are skipped."""

    is_valid: bool | None = Field(
        description="true: every check was made and passed. null: none failed, but some were skipped, so that the "
        "signer is not proved. false: at least one failed"
    )
    checks: dict[str, str]

    @classmethod
    def of(cls, row: Verification) -> Self | None:
        if row.signature_report is None:
            return None
        outcomes = set(row.signature_report.values())
        is_valid = False if "failed" in outcomes else None if "skipped" in outcomes else True
        return cls(is_valid=is_valid, checks=row.signature_report)


class FullResultBody(Wire):
    tx_id: str
    request_type: str
    requested_at: datetime
    completed_at: datetime | None
    identity: IdentityBody
    age_group: AgeBody
    unreadable_fields: list[str]
    signature: SignatureBody | None
    retrieval: Retrieval

    @classmethod
    def of(cls, retrieved: Retrieved) -> Self:
        row, personal = retrieved.verification, retrieved.identity.personal
        return cls(
            tx_id=row.tx_id,
            request_type=row.request_type,
            requested_at=row.requested_at,
            completed_at=row.completed_at,
            identity=IdentityBody.model_validate(
                {
                    field.alias or name: personal.get(field.alias or name)
                    for name, field in IdentityBody.model_fields.items()
                }
            ),
            age_group=AgeBody.of(retrieved),
            unreadable_fields=list(retrieved.identity.unreadable),
            signature=SignatureBody.of(row),
            retrieval=Retrieval.of(retrieved),
        )


class ComparisonBody(Wire):
    is_same_person: bool | None = Field(description="null when a given field cannot be compared")
    matches: dict[str, bool | None]

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        return cls(is_same_person=comparison.is_same_person, matches=comparison.matches)


class CheckedPersonBody(Wire):
    """The newest finished verification of a user, and whether it names the person who is logged in."""

    tx_id: str
    completed_at: datetime | None
    is_same_person: bool | None = Field(
        description="By CI. null when either side has none: the login's needs the scope USER_CI"
    )

    @classmethod
    def of(cls, checked: CheckedPerson) -> Self:
        row = checked.verification
        return cls(tx_id=row.tx_id, completed_at=row.completed_at, is_same_person=checked.is_same_person)


class EvidenceBody(Wire):
    """The signature value as Toss gave it: Base64 of a DER CMS SignedData. It carries the user's name."""

    tx_id: str
    signature: str
    completed_at: datetime | None
    report: SignatureBody | None

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        row = evidence.verification
        return cls(
            tx_id=row.tx_id,
            signature=evidence.signature,
            completed_at=row.completed_at,
            report=SignatureBody.of(row),
        )
