"""What can go wrong with Toss, ordered by what the caller may do next.

    TossError
    ├── NotSent          never processed: may be sent again (a TLS fault will not go away by itself)
    │   ├── CertificateRefused
    │   └── BudgetExhausted
    ├── OutcomeUnknown   perhaps processed: ask, never resend blindly
    │   └── TossFault    Toss says that it failed inside
    ├── TossRejected     a clear "no"
    └── Unintelligible   an answer that is not of the promised form; perhaps processed

No text here carries a body, a token or a vendor's sentence.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

REFUSED = frozenset(range(300, 500)) - {408, 409}
"""Redirections and client errors, but for a timeout and a conflict, which may hide an earlier success."""


class TossError(Exception):
    """Root."""


class NotSent(TossError):
    def __init__(self, why: str, *, is_tls: bool = False) -> None:
        super().__init__(why)
        self.is_tls = is_tls


class CertificateRefused(NotSent):
    """The other side does not take our client certificate, so it has looked at nothing else."""

    def __init__(self, why: str) -> None:
        super().__init__(why, is_tls=True)


class BudgetExhausted(NotSent):
    """There is no room for this call now. Nothing was sent, or Toss refused it at its door (4095)."""

    def __init__(self, retry_after: timedelta, *, limit: str) -> None:
        super().__init__(f"the request budget is spent ({limit})")
        self.retry_after = retry_after
        self.limit = limit
        """Which one: a counter's name, or `pause` after a 4095."""


class OutcomeUnknown(TossError):
    """Timeout or reset after the request was, or may have been, sent."""


class TossFault(OutcomeUnknown):
    """A call inside Toss failed (apps-in-toss reference 3.1): how far it came, nobody says."""

    def __init__(self, *, result_type: str, error_code: str) -> None:
        super().__init__(f"{result_type} with {error_code}")
        self.error_code = error_code


class TossRejected(TossError):
    """`error_code` is Toss's word and may be unknown to us (toss-cert reference 7).

    `reason` and `data` are never logged: Toss puts rejected values there (apps-in-toss reference 3.1).
    """

    def __init__(
        self, *, http_status: int, error_code: str, reason: str = "", data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"rejected with {error_code} (HTTP {http_status})")
        self.http_status = http_status
        self.error_code = error_code
        self.reason = reason
        self.data: Mapping[str, Any] = data or {}


class Unintelligible(TossError):
    """`is_json` is false for what a gateway would answer: the provider is out of order, not misunderstood.

    `was_refused` is true for a status by which HTTP says that the request was not processed, whoever says so.
    """

    def __init__(self, why: str, *, http_status: int, is_json: bool = True) -> None:
        super().__init__(f"{why} (HTTP {http_status})")
        self.http_status = http_status
        self.is_json = is_json
        self.was_refused = http_status in REFUSED
