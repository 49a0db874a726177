"""The content of the login-unlink callback (apps-in-toss reference 14.1): pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.toss.login import MAX_USER_KEY, whole_number

CONSOLE_TEST = 0
"""The `userKey` of the console's test button."""
MAX_REFERRER = 64


@dataclass(frozen=True)
class Unlink:
    user_key: int
    referrer: str
    """UNLINK, WITHDRAWAL_TERMS, WITHDRAWAL_TOSS, or whatever Toss may think of next; empty if it says nothing."""

    @classmethod
    def parse(cls, fields: object) -> "Unlink | None":
        """Number or text, `userKey` or `user_key`; None for anything that names no user."""
        if not isinstance(fields, Mapping):
            return None
        named = fields.get("userKey")
        user_key = whole_number(fields.get("user_key") if named is None else named)
        if user_key is None or not 0 <= user_key <= MAX_USER_KEY:
            return None
        referrer = fields.get("referrer")
        if not isinstance(referrer, str):
            return cls(user_key, "")
        # JSON may carry half a surrogate pair, which no encoding would take.
        return cls(user_key, referrer[:MAX_REFERRER].encode("utf-8", "backslashreplace").decode())
