"""What Toss's refusals and failures mean for our callers: one table, and nothing else that knows a code."""

from app import upstream
from app.cert.tables import READS_LOST
from app.errors import (
    AgeRestricted,
    AppError,
    ResultReadsExhausted,
    UpstreamUnavailable,
    VerificationExpired,
    VerificationNotCompleted,
    VerificationRefused,
    VerificationUnknownToToss,
)
from app.toss.errors import TossError
from app.upstream import ASK_AGAIN

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
    ours = upstream.app_error(error, refusals=REFUSALS, otherwise=VerificationRefused)
    return VerificationNotCompleted(retry_after=ASK_AGAIN) if isinstance(ours, VerificationNotCompleted) else ours
