"""What Toss's refusals of login calls mean for our callers: one table, and nothing else that knows a code."""

from app import upstream
from app.errors import (
    AnonKeyRejected,
    AppError,
    LoginRejected,
    StorageUnavailable,
    TossNotConfigured,
    UpstreamBudgetExhausted,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.toss.errors import TossError, TossRejected
from app.toss.login import NOT_VERIFIED

HTTP_UNAUTHORIZED = 401
SERVER_ERROR = 500
INVALID_GRANT = "invalid_grant"
UNAUTHENTICATED = "4010"
NO_LONGER_LINKED = frozenset({"USER_KEY_NOT_FOUND", "USER_NOT_FOUND"})
"""There is no link between this user and us: for an unlink as good as done (apps-in-toss reference 6.4, 6.6)."""
DEAD_TOKEN = NO_LONGER_LINKED | {INVALID_GRANT, "invalid_token", UNAUTHENTICATED}
"""The token that was shown is of no use any more."""

REFUSALS: dict[str, type[AppError]] = {
    "INTERNAL_ERROR": UpstreamUnavailable,
    "4034": TossNotConfigured,
    "4050": TossNotConfigured,
}
"""Toss's codes whose meaning is known (apps-in-toss reference 3.2, 6.4); every other code travels on as data."""
LOGIN_REFUSALS = REFUSALS | dict.fromkeys(DEAD_TOKEN, LoginRejected)
ANON_REFUSALS = REFUSALS | dict.fromkeys((UNAUTHENTICATED, NOT_VERIFIED, INVALID_GRANT), AnonKeyRejected)

REPEATABLE: dict[str, type[AppError]] = {
    error.code: error
    for error in (
        LoginRejected,
        StorageUnavailable,
        TossNotConfigured,
        UpstreamBudgetExhausted,
        UpstreamInvalid,
        UpstreamRefused,
        UpstreamTimeout,
        UpstreamUnavailable,
    )
}
"""With what an attempt may have ended, for those who waited for it."""


def login_error(error: TossError) -> AppError:
    return upstream.app_error(error, refusals=LOGIN_REFUSALS, otherwise=UpstreamRefused)


def anon_error(error: TossError) -> AppError:
    return upstream.app_error(error, refusals=ANON_REFUSALS, otherwise=UpstreamRefused)


def other_error(error: TossError) -> AppError:
    return upstream.app_error(error, refusals=REFUSALS, otherwise=UpstreamRefused)


def is_fault(error: TossError) -> bool:
    """Toss failed inside, whichever way it says so: what came of the call is open."""
    if not isinstance(error, TossRejected):
        return False
    return error.http_status >= SERVER_ERROR or REFUSALS.get(error.error_code) is UpstreamUnavailable


def is_dead_token(error: TossRejected) -> bool:
    return error.error_code in DEAD_TOKEN or error.http_status == HTTP_UNAUTHORIZED


def is_dead_refresh_token(error: TossRejected) -> bool:
    """Toss's codes for this are not documented (apps-in-toss reference 6.3): every no counts but known others."""
    return error.error_code not in REFUSALS and error.http_status < SERVER_ERROR
