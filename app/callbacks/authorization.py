"""Is it Toss? It signs nothing: only the value that was set in the console tells (apps-in-toss reference 14.0)."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence

SHORTEST_DECODED = 8
"""Bytes. Of a configured value that happens to be Base64 of less, the decoded form could be guessed."""
SCHEME = re.compile(rb"(?i:basic|bearer)[ \t]+")
BLANKS = b" \t"


def is_authentic(headers: Sequence[bytes], configured: str) -> bool:
    """Whether these are the Authorization headers of a caller who knows the configured value.

    In which form the value arrives is contradictory (reference 14.0, 18), so each of them is accepted. Every form
    is compared, and digests rather than texts, so that time tells neither which one matched nor how long it is.
    """
    if len(headers) != 1 or not configured:
        return False
    whole = headers[0].strip(BLANKS)
    scheme = SCHEME.match(whole)
    is_equal = False
    for given in (whole, whole[scheme.end() :] if scheme else whole):
        for expected in _forms(configured.encode()):
            is_equal |= hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())
    return is_equal


def _forms(value: bytes) -> Iterator[bytes]:
    yield value
    yield base64.b64encode(value)
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return
    # Some put Base64 into the console (14.0, C1); Toss may then be decoding. Only the one spelling is Base64 of it.
    if len(decoded) >= SHORTEST_DECODED and base64.b64encode(decoded) == value:
        yield decoded
