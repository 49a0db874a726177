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


class CallbackUnauthorized(AppError):
    code = "callback_unauthorized"
    status = 401
    title = "The Authorization header is not the one that was set in the console"
    level = logging.WARNING


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


# --- A callback's notice ------------------------------------------------------------------------------------


class NoticeNotFound(AppError):
    code = "notice_not_found"
    status = 404
    title = "There is no such notice"


class NoticeNotReplayable(AppError):
    code = "notice_not_replayable"
    status = 409
    title = "This notice cannot be handled: it is unreadable, a test, or merely kept"


# --- What we depend on --------------------------------------------------------------------------------------


class UpstreamUnavailable(AppError):
    code = "upstream_unavailable"
    status = 503
    title = "Toss cannot be reached or is out of order"
    level = logging.WARNING
    retryable = True


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


class StorageUnavailable(AppError):
    code = "storage_unavailable"
    status = 503
    title = "The database cannot be reached"
    level = logging.ERROR
    retryable = True
