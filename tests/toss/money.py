"""What the tests of Toss Pay, its billing and in-app purchase share."""

import asyncio
import json
import math
import traceback
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import strategies as st

from app.toss.errors import TossError
from app.toss.partner import PartnerApi, TossUser
from app.toss.transport import Answer
from tests.toss.partners import Canned, Pot, api_of

USER = TossUser(user_key=123456789)
NOBODY_KNOWN = TossUser(anon_key="h4sh/+=_-")
PAY_TOKEN = "pay-t0k3n"
WRAPPED_TOKEN = "wr4pp3d/t0k3n+="
SECRETS = (PAY_TOKEN, WRAPPED_TOKEN, "123456789", "h4sh")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["0", "-1", "1e3", "null", "PAY_COMPLETE", "\ud800", "\0", 0, -1, 2**63, 10**30, math.inf]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def payloads(*names: str) -> st.SearchStrategy[object]:
    """Anything at all, mostly an object that has fields of these names."""
    return st.dictionaries(st.sampled_from(names), JSON) | JSON


async def fault_of(call: Awaitable[object], kind: type[TossError]) -> TossError:
    """Nothing that it shows is a secret."""
    with pytest.raises(kind) as caught:
        await call
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not [secret for secret in SECRETS if secret in shown]
    return caught.value


def canned(*payloads: object, pot: Pot | None = None) -> PartnerApi:
    """Says SUCCESS with one payload after the other."""
    bodies = [json.dumps({"resultType": "SUCCESS", "success": payload}).encode() for payload in payloads]
    return api_of(Canned(*(Answer(200, body) for body in bodies)), pot or Pot())


def outcome(call: Callable[[PartnerApi], Awaitable[object]], payload: object) -> object:
    """What comes of a payload: what was read of it, or a TossError; anything else is a bug and gets out."""

    async def ask() -> object:
        try:
            return await call(canned(payload))
        except TossError as error:
            return error

    return asyncio.run(ask())
