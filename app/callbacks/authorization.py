"""Whether a callback carries the Authorization value that was set in the console: pure."""

import base64
import binascii
import hmac
import re
from collections.abc import Sequence

SHORTEST_DECODED = 8
"""Bytes. What a short value happens to decode to could be guessed."""

_SCHEME = re.compile(rb"(?:basic|bearer)[ \t]+", re.IGNORECASE)


def is_authentic(headers: Sequence[bytes], configured: str) -> bool:
    """`headers` are all Authorization headers of the request, as they came.

    How Toss encodes the value is contradictory (apps-in-toss reference 14.0), so every seen form serves: the value
    as it was entered, its Base64, or, if it was entered as Base64, what that decodes to; with or without a scheme.
    """
    if len(headers) != 1 or not configured.strip():
        return False
    whole = headers[0].strip()
    value = configured.strip().encode()
    expected = [value, base64.b64encode(value)]
    decoded = _decoded(value)
    if decoded is not None:
        expected.append(decoded)
    shown = (whole, _SCHEME.sub(b"", whole, count=1).strip() if _SCHEME.match(whole) else whole)
    # All of them, whatever the first says: how long it takes must not tell which one came close.
    return any([hmac.compare_digest(one, other) for one in shown for other in expected])  # noqa: C419


def _decoded(value: bytes) -> bytes | None:
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded.strip() if len(decoded.strip()) >= SHORTEST_DECODED else None
