"""What the reference leaves open, with its safest value as default."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Situation(StrEnum):
    """Why Toss says FAIL."""

    BAD_TOKEN = "bad_token"  # noqa: S105
    INVALID = "invalid"
    SESSION_REUSED = "session_reused"
    UNKNOWN_TX = "unknown_tx"
    NOT_COMPLETED = "not_completed"
    READS_USED_UP = "reads_used_up"
    TOO_LATE = "too_late"
    EXPIRED = "expired"


class Links(StrEnum):
    """What the launch links of USER_PERSONAL hold (reference 3.3)."""

    TEXT_NULL = "text_null"
    JSON_NULL = "json_null"
    REAL = "real"
    ABSENT = "absent"


class MissingCertificate(StrEnum):
    """What a caller of the partner API without a client certificate gets (reference 2.2: undocumented)."""

    HANDSHAKE = "handshake"
    STATUS_401 = "status_401"
    HTML_400 = "html_400"
    """As nginx does it."""


class PayloadKey(StrEnum):
    """Where the partner API's successes hold their payload (reference 3.1)."""

    SUCCESS = "success"
    RESULT = "result"


class RefreshRotation(StrEnum):
    """What comes of a refresh token that was used (reference 6.3: undocumented)."""

    ROTATE = "rotate"
    """A new one for another 14 days; the old one ends."""
    OVERLAP = "overlap"
    """A new one for another 14 days; the old one lives on."""
    KEEP = "keep"
    """The same one again; its 14 days go on."""


class DecryptionKey(StrEnum):
    FIRST = "first"
    SECOND = "second"
    """As after a re-issue (reference 6.5)."""


class BothHeaders(StrEnum):
    """What comes of a call that names its user twice (reference 4: undocumented)."""

    REJECT = "reject"
    PREFER_USER_KEY = "prefer_user_key"


class ExecuteRepeat(StrEnum):
    """How an executed payment answers to a second execute (reference 8.3)."""

    EXISTING_PAYMENT = "existing_payment"
    SUCCESS = "success"


class RefundRepeat(StrEnum):
    """How a refunded payment answers to a second refund (reference 8.4: unstated)."""

    SUCCESS = "success"
    ALREADY_REFUNDED = "already_refunded"


class StatusNotFound(StrEnum):
    """How get-payment-status tells of no payment (reference 8.5: the OpenAPI lists 404)."""

    FAIL = "fail"
    HTTP_404 = "http_404"


class WireModel(BaseModel):
    """camelCase in JSON, snake_case in Python; nothing unknown and nothing converted."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", validate_assignment=True
    )


def default_codes() -> dict[Situation, str]:
    return {
        Situation.BAD_TOKEN: "CE1000",
        Situation.UNKNOWN_TX: "CE3100",
        Situation.NOT_COMPLETED: "CE3102",
        # The rest is inferred: reference 7, "simulator defaults for cases whose code is unknown".
        Situation.INVALID: "CE3000",
        Situation.SESSION_REUSED: "CE3000",
        Situation.READS_USED_UP: "CE3101",
        Situation.TOO_LATE: "CE3103",
        Situation.EXPIRED: "CE3103",
    }


class MoneySwitches(WireModel):
    """Of Toss Pay and in-app purchase; references are to the reference of Apps in Toss."""

    both_user_headers: BothHeaders = BothHeaders.REJECT
    pay_nulls: bool = True
    """8.3: fields that are not used are null; off: they are absent."""
    inner_failure: bool = False
    """8.3: refusals come as SUCCESS with `code: -1`, `errorCode` and `msg`, as plain Toss Pay has it."""
    amounts_as_text: bool = False
    """Of answers only. That they are numbers is documented; clients should survive it."""
    execute_repeat: ExecuteRepeat = ExecuteRepeat.EXISTING_PAYMENT
    execute_cancelled_code: str = "PAY_CANCEL_ITS_NOT_CANCELABLE_STATUS"
    """8.8: which of the names a cancelled payment answers with is not documented."""
    refund_repeat: RefundRepeat = RefundRepeat.SUCCESS
    refund_reason_required: bool = True
    """18: required by the guide, optional in the OpenAPI."""
    refund_reason_blanks: bool = False
    """8.4: the list of allowed characters has no blank."""
    status_by_order_no: bool = True
    """18: get-payment-status is satisfied with one of payToken and orderNo."""
    status_not_found: StatusNotFound = StatusNotFound.FAIL
    payment_life_seconds: int = Field(default=900, ge=1)
    """8.2: of plain Toss Pay; for billing keys too (9)."""
    stays_in_progress: bool = False
    """8.6: executing and refunding leave the payment in progress until it is told to finish."""
    discount: int = Field(default=0, ge=0)
    """8.3: what Toss takes off by itself; paidAmount is so much less."""
    billing_status_field: str = "status"
    """9: not documented."""
    iap_user_header_required: bool = False
    """18: required in 2025, optional in 2026."""
    iap_words_of_2025: bool = False
    """10.1: PAYMENT_COMPLETED is paid and delivered, PURCHASED is paid."""
    iap_zone: bool = False
    """10.1: statusDeterminedAt with an offset, as the pattern of the documentation has it."""
    iap_knows_subscriptions: bool = True
    """10.3: unstated; off: NOT_FOUND."""


class Switches(MoneySwitches):
    links: Links = Links.TEXT_NULL
    auth_url: bool = False
    """Q9: authUrl for USER_NONE is not on the Apps-in-Toss page."""
    age_group: bool = True
    """Q8: in the table, missing from the sample."""
    explicit_error_null: bool = False
    """Reference 3.2: some Toss products add `"error": null` to a success."""
    request_url_required: bool = True
    """Q2."""
    null_fields_as_text: bool = False
    """ci2 and ciUpdate as the text "null", as the launch links have it."""
    token_expires_in: int | None = None
    """Seconds; None means by the kind of client (reference 2)."""
    token_expires_in_as_text: bool = False
    request_life_seconds: int = Field(default=600, ge=1)
    """Q3: the life of a request that names none; only the maximum of 1800 is known."""
    sibling_paths: bool = True
    """Q1: answer on the paths without /id as well."""
    session_reuse_refused: bool = True
    """Q7: the documentation forbids it; what Toss does is unknown."""
    codes: dict[Situation, str] = Field(default_factory=default_codes)
    fail_statuses: dict[str, int] = Field(default_factory=dict)
    """HTTP status by error code where it differs from 401 for CE1000 and 400 for the rest."""

    # The partner API. References from here on are to the reference of Apps in Toss.
    missing_certificate: MissingCertificate = MissingCertificate.HANDSHAKE
    tls_1_3: bool = True
    """Off: the partner API speaks TLS 1.2 only, where a refused certificate shows during the handshake."""
    payload_key: PayloadKey = PayloadKey.SUCCESS
    user_key_as_text: bool = False
    """4: a number, but some saw text."""
    numbers_as_text: bool = False
    """18: expiresIn is text in the table and a number in the samples; retryAfterSeconds goes along."""
    failure_without_success: bool = False
    """3.1: `success` is null or absent in a failure."""
    short_errors: bool = False
    """3.1: older pages show only errorCode and reason."""
    invalid_grant_status: int | None = None
    """3.1: None means 400 for generate-token and 401 for the rest, as the OpenAPI pages list them."""
    refresh_rotation: RefreshRotation = RefreshRotation.ROTATE
    refresh_refusal_code: str | None = "4010"
    """6.3: FAIL with a code that is not named (4010 is inferred); None means a bare invalid_grant."""
    login_ends_older_tokens: bool = False
    """19, question 5."""
    scope_blanks: bool = True
    """6.4: login-me separates scopes by commas, blanks possible."""
    agree_terms_spelling: bool = False
    """6.4: `agreeTerms`, as one community DTO has it."""
    login_me_extras: bool = False
    """6.4: policy, certTxId and callingCode, which some saw."""
    decryption_key: DecryptionKey = DecryptionKey.FIRST
    wrong_aad_fields: list[str] = Field(default_factory=list)
    """Fields of login-me that are sealed with another AAD than the mini-app's."""
    unlink_user_needs_bearer: bool = False
    """6.6: disputed."""
    unlink_token_empty: bool = False
    """6.6: an empty payload instead of userKey."""
    unlink_unknown_is_success: bool = False
    """6.6: whether a repeated unlink succeeds is undocumented; a failure is inferred."""
    anon_success_as_text: bool = False
    """7: "true" in one version of the documentation, true in another."""
    anon_failure_status: int = 401
    """7: 401 in the documentation; 200 was measured."""
    rate_limit_status: int = 200
    """3.3: not stated."""

    def code(self, situation: Situation) -> str:
        return self.codes.get(situation, default_codes()[situation])

    def fail_status(self, code: str) -> int:
        # Reference 3.2: 400 was seen for CE3102 and 401 for a bad token; 400 elsewhere is inferred.
        return self.fail_statuses.get(code, 401 if code == "CE1000" else 400)
