"""What can go wrong, in our own words.

Every class owns its public `code`, HTTP `status`, `title` and log `level`. The codes are a contract with the
callers: they are written by hand, frozen by a test, and documented in one table of the README.
"""

import logging
from datetime import timedelta
from typing import ClassVar


class AppError(Exception):
    """Root of everything that this service says to a caller.

    `detail` is a sentence written by us. It never carries input, personal data or a vendor's text.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    level: ClassVar[int] = logging.INFO
    retryable: bool = False

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: timedelta | None = None,
        retryable: bool | None = None,
        toss_code: str | None = None,
        reads_left: int | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable
        self.toss_code = toss_code
        self.reads_left = reads_left


class InternalError(AppError):
    level = logging.ERROR


# --- The request itself -------------------------------------------------------------------------------------


class InvalidRequest(AppError):
    code = "invalid_request"
    status = 422
    title = "The request is malformed"


class NotFound(AppError):
    code = "not_found"
    status = 404
    title = "There is nothing at this address"


class MethodNotAllowed(AppError):
    code = "method_not_allowed"
    status = 405
    title = "This address does not know the method"


class PayloadTooLarge(AppError):
    code = "payload_too_large"
    status = 413
    title = "The request body is too large"


class RequestTimeout(AppError):
    code = "request_timeout"
    status = 408
    title = "The request body did not arrive in time"
    retryable = True


class TooManyRequests(AppError):
    code = "too_many_requests"
    status = 429
    title = "Too many requests come from this address; wait before the next one"
    retryable = True


# --- Who is asking ------------------------------------------------------------------------------------------


class VerificationTokenRequired(AppError):
    code = "verification_token_required"
    status = 401
    title = "The verification token is missing"


class ServerKeyRequired(AppError):
    code = "server_key_required"
    status = 401
    title = "A valid server key is required"


class ScopeMissing(AppError):
    code = "scope_missing"
    status = 403
    title = "The server key does not have the scope for this"


class AddressNotAllowed(AppError):
    code = "address_not_allowed"
    status = 403
    title = "This address may not call here"
    level = logging.WARNING


class SessionRequired(AppError):
    """Absent, unknown, ended: who asks is told no more."""

    code = "session_required"
    status = 401
    title = "A valid session token is required; log in"


class CallbackUnauthorized(AppError):
    code = "callback_unauthorized"
    status = 401
    title = "The Authorization value is not the one that was set in the console"
    level = logging.WARNING


# --- Notices: what Toss has called back about ---------------------------------------------------------------


class NoticeNotFound(AppError):
    code = "notice_not_found"
    status = 404
    title = "There is no such notice"


class NoticeNotReplayable(AppError):
    code = "notice_not_replayable"
    status = 409
    title = "This notice cannot be handled again"


# --- Toss login ---------------------------------------------------------------------------------------------


class LoginRejected(AppError):
    code = "login_rejected"
    status = 401
    title = "Toss does not accept this login; call appLogin() again"


class AnonKeyRejected(AppError):
    code = "anon_key_rejected"
    status = 401
    title = "Toss does not know this anonymous key"


class LoginInProgress(AppError):
    code = "login_in_progress"
    status = 409
    title = "This authorization code is being exchanged by another call"
    retryable = True


class UnlinkNeedsLogin(AppError):
    """Toss wants the user's access token, and the one we have is dead."""

    code = "unlink_needs_login"
    status = 409
    title = "Toss wants a fresh login before it ends the link; log in again, then repeat"


class SessionNotFound(AppError):
    code = "session_not_found"
    status = 404
    title = "There is no such session, or it is not yours"


class UserNotFound(AppError):
    code = "user_not_found"
    status = 404
    title = "There is no such user"


# --- A verification -----------------------------------------------------------------------------------------


class VerificationNotFound(AppError):
    code = "verification_not_found"
    status = 404
    title = "There is no such verification, or it is not yours"


class VerificationNotCompleted(AppError):
    code = "verification_not_completed"
    status = 409
    title = "The user has not finished yet"
    retryable = True


class ResultInProgress(AppError):
    code = "result_in_progress"
    status = 409
    title = "The result is being fetched by another call"
    retryable = True


class VerificationExpired(AppError):
    code = "verification_expired"
    status = 410
    title = "The time for this verification is over; start again"


class ResultReadsExhausted(AppError):
    code = "result_reads_exhausted"
    status = 410
    title = "Both reads of this result are used, or may have been; start again"


class VerificationUnknownToToss(AppError):
    code = "verification_unknown_to_toss"
    status = 410
    title = "Toss does not know this verification any more; start again"


class VerificationErased(AppError):
    code = "verification_erased"
    status = 410
    title = "The personal data of this verification has been erased"


class AgeRestricted(AppError):
    code = "age_restricted"
    status = 403
    title = "The user's age does not allow this verification"


class VerificationRefused(AppError):
    """Toss said a clear no whose meaning is not established; its code travels as data."""

    code = "verification_refused"
    status = 409
    title = "Toss refused this verification"
    level = logging.WARNING


class ResultOutcomeUnknown(AppError):
    """The answer to a result call was lost. It may have used one of the two permitted reads."""

    code = "result_outcome_unknown"
    status = 504
    title = "Toss's answer was lost; whether the read was used is unknown"
    level = logging.WARNING
    retryable = True


# --- Payments, purchases ------------------------------------------------------------------------------------


class IdempotencyKeyRequired(AppError):
    code = "idempotency_key_required"
    status = 400
    title = "The Idempotency-Key header is missing or not 1 to 255 printable characters"


class IdempotencyKeyReused(AppError):
    code = "idempotency_key_reused"
    status = 422
    title = "This Idempotency-Key was used for another request"


class ProductNotFound(AppError):
    code = "product_not_found"
    status = 404
    title = "There is no such product"


class OrderNotFound(AppError):
    code = "order_not_found"
    status = 404
    title = "There is no such order, or it is not yours"


class OrderNotPayable(AppError):
    code = "order_not_payable"
    status = 409
    title = "This order is paid, cancelled or past its end"


class PaymentNotFound(AppError):
    code = "payment_not_found"
    status = 404
    title = "There is no such payment, or it is not yours"


class PaymentNotApproved(AppError):
    code = "payment_not_approved"
    status = 409
    title = "The user has not authenticated this payment"


class PaymentInProgress(AppError):
    code = "payment_in_progress"
    status = 409
    title = "Another call is at work on this payment"
    retryable = True


class PaymentEnded(AppError):
    code = "payment_ended"
    status = 409
    title = "This payment is over; begin a new one"


class PaymentRefused(AppError):
    """Toss said a clear no; its code travels as data."""

    code = "payment_refused"
    status = 409
    title = "Toss refused this payment"


class PaymentHeld(AppError):
    code = "payment_held"
    status = 409
    title = "What Toss says of this payment contradicts our record; somebody has to look at it"
    level = logging.ERROR


class RefundNotPossible(AppError):
    code = "refund_not_possible"
    status = 409
    title = "This payment cannot be refunded"


class RefundRefused(AppError):
    """Toss said a clear no; its code travels as data."""

    code = "refund_refused"
    status = 409
    title = "Toss refused this refund"
    level = logging.WARNING


class BillingKeyNotFound(AppError):
    code = "billing_key_not_found"
    status = 404
    title = "There is no such billing key, or it is not yours"


class BillingKeyNotActive(AppError):
    code = "billing_key_not_active"
    status = 409
    title = "This billing key cannot be charged"


class PurchaseNotFound(AppError):
    code = "purchase_not_found"
    status = 404
    title = "There is no such purchase, or it is not yours"


class PurchaseNotReady(AppError):
    code = "purchase_not_ready"
    status = 409
    title = "Toss does not show this order as paid yet"
    retryable = True


class PurchaseFailed(AppError):
    code = "purchase_failed"
    status = 409
    title = "This order was not paid, or is not of this mini-app"


class PurchaseRefunded(AppError):
    code = "purchase_refunded"
    status = 409
    title = "This order was refunded"


# --- Events: what the partner's server is told --------------------------------------------------------------


class EventNotFound(AppError):
    code = "event_not_found"
    status = 404
    title = "There is no such event"


class EventsNotConfigured(AppError):
    code = "events_not_configured"
    status = 409
    title = "There is no address to which events could be delivered"


# --- What we depend on --------------------------------------------------------------------------------------


class UpstreamUnavailable(AppError):
    code = "upstream_unavailable"
    status = 503
    title = "Toss cannot be reached or is out of order"
    level = logging.WARNING
    retryable = True


class UpstreamBudgetExhausted(AppError):
    code = "upstream_budget_exhausted"
    status = 503
    title = "Toss's request budget is spent for the moment"
    level = logging.WARNING
    retryable = True


class UpstreamRefused(AppError):
    """Toss said a clear no whose meaning is not established; its code travels as data."""

    code = "upstream_refused"
    status = 502
    title = "Toss refused the request"
    level = logging.WARNING


class TossNotConfigured(AppError):
    """No client certificate here, or no Toss login in the console."""

    code = "toss_not_configured"
    status = 503
    title = "This is not set up, here or at Toss"
    level = logging.ERROR


class UpstreamTimeout(AppError):
    code = "upstream_timeout"
    status = 504
    title = "Toss did not answer in time"
    level = logging.WARNING
    retryable = True


class UpstreamInvalid(AppError):
    code = "upstream_invalid"
    status = 502
    title = "Toss's answer is not of the promised form"
    level = logging.ERROR


class SealedDataUnreadable(AppError):
    """A stored value does not open: its key is no longer configured, or it was damaged."""

    code = "sealed_data_unreadable"
    status = 503
    title = "Stored data cannot be opened with the configured keys"
    level = logging.ERROR


class ServiceStopping(AppError):
    code = "service_stopping"
    status = 503
    title = "The service is stopping, and the call did not end in time"
    level = logging.WARNING
    retryable = True


class StorageUnavailable(AppError):
    code = "storage_unavailable"
    status = 503
    title = "The database cannot be reached"
    level = logging.ERROR
    retryable = True
