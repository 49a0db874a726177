"""In-app purchase: the status of an order, with its wire model (apps-in-toss reference 10)."""

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final

from app.toss.calls import observed
from app.toss.errors import Unintelligible
from app.toss.governor import Lane
from app.toss.partner import PartnerApi, TossUser, plain_text

PATH: Final = "/api-partner/v1/apps-in-toss/order/get-order-status"
FIRST_YEAR, LAST_YEAR = 2000, 9000
"""A time outside of these is a mistake, and not every database holds it."""


def instant_of(text: str | None, zone: tzinfo) -> datetime | None:
    """A time as Toss writes it, in `zone` unless it names one (reference 10.1, 14.2); None for what is none."""
    try:
        read = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    if not FIRST_YEAR <= read.year < LAST_YEAR:
        return None
    return (read if read.tzinfo else read.replace(tzinfo=zone)).astimezone(UTC)


@dataclass(frozen=True)
class OrderStatus:
    status: str
    """Of reference 10.1, or a word that is new to us."""
    sku: str | None
    determined_at: str | None
    """As it came: Toss names no zone."""


class IapApi:
    """I1, the only one there is."""

    def __init__(self, *, partner: PartnerApi) -> None:
        self._partner = partner
        self.observe = partner.observe

    @observed("iap.order_status")
    async def order_status(
        self, order_id: str, *, user: TossUser | None, lane: Lane = Lane.INTERACTIVE
    ) -> OrderStatus:
        """May be repeated at will; a lost answer is asked for once more by itself.

        With a `user` who has logged in, Toss answers for this user's orders only; an anonymous key is not
        documented here, and is not sent (reference 10.1).

        Raises: TossError.
        """
        headers = user.headers() if user is not None and user.user_key is not None else {}
        payload = await self._partner.ask(PATH, {"orderId": order_id}, headers=headers, lane=lane)
        fields = payload.fields()
        if plain_text(fields.get("orderId")) not in (order_id, None):
            raise Unintelligible("of another order", http_status=payload.http_status)
        return OrderStatus(
            status=payload.text("status"),
            sku=plain_text(fields.get("sku")),
            determined_at=plain_text(fields.get("statusDeterminedAt")),
        )
