"""What Toss's refusals of Toss Pay calls mean: one table, and nothing else that knows a code."""

from app import upstream
from app.errors import AppError, PaymentNotApproved, PaymentRefused, TossNotConfigured, UpstreamUnavailable
from app.toss.errors import TossError, TossRejected

SERVER_ERROR = 500

NOT_APPROVED = "EXECUTE_PAY_NOT_APPROVED"
NOT_FOUND = "TRANSACTION_NOT_FOUND"
"""Toss has no such payment."""
UNKNOWN_USER = "4010"
HTTP_NOT_FOUND = 404

CLEAR = frozenset(
    {
        "INVALID_PARAMETER",
        UNKNOWN_USER,
        "4034",
        "4050",
        "COMMON_INVALID_PARAMETER",
        NOT_APPROVED,
        "PAY_CANCEL_ITS_NOT_CANCELABLE_STATUS",
        "COMMON_INVALID_API_KEY",
        "COMMON_UNAUTHORIZED",
        "PAYMENT_SHOP_STATE_NOT_NORMAL",
        "PAYMENT_SHOP_STATE_CANNOT_REFUND",
        "NOT_INTERNAL_SHOP",
        "USER_STATUS_ERROR",
        "INACTIVE_USER",
        "PAUSE_USER",
        "PAY_UNAUTHORIZED",
        "AGE_POLICY_ERROR",
        "TOSS_APP_UPDATE_IS_REQUIRED",
        "PAY_FRAUD_DETECTED",
        "BLOCKED_THE_USE_OF_POINT",
        "INVALID_ACCOUNT_STATUS",
        "AUTO_CHARGE_NOT_YET_REGISTER_ACCOUNT",
        "COMMON_NOT_ENOUGH_CASH",
        "COMMON_EXCEED_LIMIT",
        "DISCOUNT_CLOSED",
        "USER_DISCOUNT_CLOSED",
        "DISCOUNT_NEED_ISSUE",
        "DISCOUNT_ALREADY_ISSUED",
        "AVAILABLE_ONLY_TOSS_MONEY_UNDER_MIN_AMT",
        "CARD_NOT_AVAILABLE_SHOP",
        "CARD_NOT_AVAILABLE",
        "CARD_EXCEED_LIMIT",
        "CARD_NOT_ENOUGH_BALANCE",
        "CARD_SPREADOUT_ERROR",
        "CARD_MIN_AMOUNT_ERROR",
        "CARD_MIN_AMOUNT_FOR_SPREADOUT_ERROR",
        "REFUND_EXCEED_DAILY",
        "NOT_SUPPORTED_BILLING_KEY_SHOP",
        "BILLING_KEY_REGISTRATION_CANCELLED",
        "BILLING_KEY_UNREGISTERED_BY_CANCEL",
        "BILLING_KEY_AUTH_ERROR",
        "BILLING_KEY_USER_CI_ERROR",
        "NOT_SUPPORTED_PAYMENT_METHOD",
        "COMMON_BILLING_KEY_NOT_FOUND",
    }
)
"""Codes that say that this call has moved nothing (apps-in-toss reference 3.2, 8.8).

After every other one, known or new, a status query has to tell what became of the call: that a payment exists
already, that another one is still running, that something inside Toss took too long or broke.
"""

VAGUE = frozenset(
    {
        "INTERNAL_ERROR",
        "COMMON_SYSTEM_ERROR",
        "COMMON_TIMEOUT",
        "COMMON_THROTTLED",
        "COMMON_BREAK_TIME_OF_BANK",
        "TRANSACTION_PENDING_ERROR",
        "CARD_SYSTEM_ERROR",
        "CARD_BANK_SYSTEM_ERROR",
    }
)
"""With these a refund may still be on its way.

After any other no, a status that shows no refund is believed: believed wrongly, it costs no money, as a refund can
be asked for again and is made once all the same.
"""

CONFIGURATION: dict[str, type[AppError]] = dict.fromkeys(
    ("4034", "4050", "COMMON_INVALID_API_KEY", "COMMON_UNAUTHORIZED", "NOT_INTERNAL_SHOP"), TossNotConfigured
)
REFUSALS: dict[str, type[AppError]] = CONFIGURATION | {
    NOT_APPROVED: PaymentNotApproved,
    "INTERNAL_ERROR": UpstreamUnavailable,
    "COMMON_SYSTEM_ERROR": UpstreamUnavailable,
    "COMMON_BREAK_TIME_OF_BANK": UpstreamUnavailable,
    "COMMON_TIMEOUT": UpstreamUnavailable,
    "COMMON_THROTTLED": UpstreamUnavailable,
}


def pay_error(error: TossError, *, otherwise: type[AppError] = PaymentRefused) -> AppError:
    return upstream.app_error(error, refusals=REFUSALS, otherwise=otherwise)


def refused(code: str, *, otherwise: type[AppError] = PaymentRefused) -> AppError:
    """For a no that was remembered."""
    return REFUSALS.get(code, otherwise)(toss_code=code)


def is_clear_no(error: TossError) -> bool:
    """Whether this refusal by itself says that nothing was moved."""
    return isinstance(error, TossRejected) and error.http_status < SERVER_ERROR and error.error_code in CLEAR


def is_clear_no_to_refund(error: TossError) -> bool:
    return isinstance(error, TossRejected) and error.http_status < SERVER_ERROR and error.error_code not in VAGUE


def is_unknown_user(error: TossError) -> bool:
    """Toss does not link this user with us any more, so nothing can be done in their name (reference 3.2)."""
    return isinstance(error, TossRejected) and error.error_code == UNKNOWN_USER


def is_unknown_payment(error: TossError) -> bool:
    """Whether an answer to a status query says that there is no such payment (reference 8.5 lists a 404)."""
    return isinstance(error, TossRejected) and (
        error.error_code == NOT_FOUND or error.http_status == HTTP_NOT_FOUND
    )
