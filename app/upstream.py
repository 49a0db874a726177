"""Failures of the vendor in our words. A feature adds what Toss's own codes mean to it."""

from collections.abc import Mapping
from datetime import timedelta

from app.errors import AppError, UpstreamBudgetExhausted, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from app.toss.errors import (
    BudgetExhausted,
    NotSent,
    OutcomeUnknown,
    TossError,
    TossFault,
    TossRejected,
    Unintelligible,
)

ASK_AGAIN = timedelta(seconds=2)
"""Retry-After while the user is busy or another call is in flight; integrators poll every two to three seconds."""


def app_error(error: TossError, *, refusals: Mapping[str, type[AppError]], otherwise: type[AppError]) -> AppError:
    """`refusals` by Toss's code; `otherwise` for a clear no whose meaning is not established."""
    match error:
        case BudgetExhausted(retry_after=wait):
            return UpstreamBudgetExhausted(retry_after=wait)
        case TossRejected(error_code=code, http_status=http_status):
            is_fault = http_status >= 500 or http_status == 401  # noqa: PLR2004 - theirs, or our credentials
            meaning = refusals.get(code) or (UpstreamUnavailable if is_fault else otherwise)
            return meaning(toss_code=code)
        case NotSent():
            return UpstreamUnavailable(retry_after=ASK_AGAIN)
        case Unintelligible(is_json=False) | Unintelligible(was_refused=True):
            return UpstreamUnavailable(retry_after=ASK_AGAIN)
        case TossFault(error_code=code):
            return UpstreamUnavailable(toss_code=code)
        case OutcomeUnknown():
            return UpstreamTimeout()
        case _:
            return UpstreamInvalid()


def is_away(error: AppError) -> bool:
    """Whether Toss answers nobody at the moment: a run that goes on to the next would only wait as long again."""
    match error.__cause__:
        case TossFault() | Unintelligible(is_json=True):
            return False
        case cause:
            return isinstance(cause, NotSent | OutcomeUnknown | Unintelligible)
