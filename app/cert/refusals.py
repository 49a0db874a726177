"""What Toss's refusals and failures mean for our callers: one table, and nothing else that knows a code."""

from datetime import timedelta

from app.cert.tables import READS_LOST
from app.errors import (
    AgeRestricted,
    AppError,
    ResultReadsExhausted,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
    VerificationExpired,
    VerificationNotCompleted,
    VerificationRefused,
    VerificationUnknownToToss,
)
from app.toss.errors import NotSent, OutcomeUnknown, TossError, TossRejected, Unintelligible

ASK_AGAIN = timedelta(seconds=2)
"""Retry-After while the user is busy or another call is in flight; integrators poll every two to three seconds."""

UNREADABLE = "UNREADABLE"

REFUSALS: dict[str, type[AppError]] = {
    "CE0001": UpstreamUnavailable,
    "CE0002": UpstreamUnavailable,
    "CE1000": UpstreamUnavailable,
    "CE3006": AgeRestricted,
    "CE3100": VerificationUnknownToToss,
    "CE3101": ResultReadsExhausted,
    "CE3102": VerificationNotCompleted,
    "CE3103": VerificationExpired,
}
"""Toss's codes whose meaning is known (toss-cert reference 7); every other code travels on as data."""
FINAL_CODES = frozenset({"CE3006", "CE3100", "CE3101", "CE3103"})
ENDINGS: dict[str, type[AppError]] = REFUSALS | {
    READS_LOST: ResultReadsExhausted,
    UNREADABLE: ResultReadsExhausted,
}


def ending(end_code: str | None) -> AppError:
    """Why a verification that has ended will have no result."""
    return ENDINGS.get(end_code or "", VerificationExpired)()


def app_error(error: TossError) -> AppError:
    """A failure of the vendor in our words."""
    match error:
        case TossRejected(error_code=code, http_status=http_status):
            known = REFUSALS.get(code)
            if known is VerificationNotCompleted:
                return VerificationNotCompleted(retry_after=ASK_AGAIN)
            if known is not None:
                return known(toss_code=code)
            is_fault = http_status >= 500 or http_status == 401  # noqa: PLR2004 - theirs, or our credentials
            return (UpstreamUnavailable if is_fault else VerificationRefused)(toss_code=code)
        case NotSent():
            return UpstreamUnavailable(retry_after=ASK_AGAIN)
        case Unintelligible(is_json=False) | Unintelligible(was_refused=True):
            return UpstreamUnavailable(retry_after=ASK_AGAIN)
        case OutcomeUnknown():
            return UpstreamTimeout()
        case _:
            return UpstreamInvalid()
