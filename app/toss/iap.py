"""In-app purchase: the status of an order, with its wire model (apps-in-toss reference 10)."""

from dataclasses import dataclass

from app.toss.governor import Lane
from app.toss.partner import PartnerApi, TossUser


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

    async def order_status(
        self, order_id: str, *, user: TossUser | None, lane: Lane = Lane.INTERACTIVE
    ) -> OrderStatus:
        """May be repeated at will. With `user`, Toss answers for this user's orders only (reference 10.1).

        Raises: TossError.
        """
        raise NotImplementedError
