"""What can go wrong with Toss, ordered by what the caller may do next.

    TossError
    ├── NotSent          never processed: may be sent again (a TLS fault will not go away by itself)
    │   └── CertificateRefused
    ├── OutcomeUnknown   perhaps processed: ask, never resend blindly
    ├── TossRejected     a clear "no"
    └── Unintelligible   an answer that is not of the promised form; perhaps processed

No text here carries a body, a token or a vendor's sentence.
"""

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


class OutcomeUnknown(TossError):
    """Timeout or reset after the request was, or may have been, sent."""


class TossRejected(TossError):
    """`error_code` is Toss's word and may be unknown to us (toss-cert reference 7); `reason` is never logged."""

    def __init__(self, *, http_status: int, error_code: str, reason: str = "") -> None:
        super().__init__(f"rejected with {error_code} (HTTP {http_status})")
        self.http_status = http_status
        self.error_code = error_code
        self.reason = reason


class Unintelligible(TossError):
    """`is_json` is false for what a gateway would answer: the provider is out of order, not misunderstood.

    `was_refused` is true for a status by which HTTP says that the request was not processed, whoever says so.
    """

    def __init__(self, why: str, *, http_status: int, is_json: bool = True) -> None:
        super().__init__(f"{why} (HTTP {http_status})")
        self.http_status = http_status
        self.is_json = is_json
        self.was_refused = http_status in REFUSED
