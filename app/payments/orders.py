"""Orders: what the partner's server wants paid, made once for each idempotency key."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Database, Page, time_ordered_id
from app.errors import IdempotencyKeyReused, InvalidRequest, OrderNotFound, TossNotConfigured
from app.payments.states import OVER, PaymentState
from app.payments.tables import Order, Payment, charged
from app.toss.pay import Charge
from app.vault import Vault


@dataclass(frozen=True)
class OrderRequest:
    charge: Charge
    reference: str | None = None
    user_id: str | None = None
    expires_at: datetime | None = None
    billing_key_id: str | None = None


class Orders:
    def __init__(
        self, *, database: Database, vault: Vault, clock: Callable[[], datetime], is_test: bool, is_open: bool
    ) -> None:
        """`is_open`: whether there are payments here at all."""
        self._database = database
        self._vault = vault
        self._clock = clock
        self._is_test = is_test
        self._is_open = is_open

    async def make(self, request: OrderRequest, *, idempotency_key: str, actor: str) -> tuple[Order, bool]:
        """The order of this key, and whether it is new.

        Raises: IdempotencyKeyReused for another request under the same key; TossNotConfigured.
        """
        if not self._is_open:
            raise TossNotConfigured
        try:
            async with self._database.transaction() as session:
                known = await self.known_in(session, request, idempotency_key)
                if known is not None:
                    return known, False
                if request.expires_at is not None and request.expires_at <= self._clock():
                    raise InvalidRequest("expiresAt is over already")
                order = self.add_in(session, request, idempotency_key=idempotency_key, actor=actor)
                await session.flush()
                return order, True
        except IntegrityError:  # another call with this key was faster, and is committed now
            async with self._database.transaction() as session:
                known = await self.known_in(session, request, idempotency_key)
            if known is None:
                raise
            return known, False

    async def known_in(self, session: AsyncSession, request: OrderRequest, idempotency_key: str) -> Order | None:
        """Raises: IdempotencyKeyReused."""
        key_hash = self._key_hash(idempotency_key)
        known: Order | None = await session.scalar(select(Order).where(Order.idempotency_hash == key_hash))
        if known is not None and known.request_hash != self._request_hash(request):
            raise IdempotencyKeyReused
        return known

    def add_in(self, session: AsyncSession, request: OrderRequest, *, idempotency_key: str, actor: str) -> Order:
        now = self._clock()
        order = Order(
            order_id=time_ordered_id(now),
            is_test=self._is_test,
            idempotency_hash=self._key_hash(idempotency_key),
            request_hash=self._request_hash(request),
            created_by=actor,
            reference=request.reference,
            user_id=request.user_id,
            billing_key_id=request.billing_key_id,
            created_at=now,
            expires_at=request.expires_at,
            **charged(request.charge),
        )
        session.add(order)
        return order

    def _key_hash(self, idempotency_key: str) -> str:
        """What was paid in a test is not paid: live orders have keys of their own."""
        return self._vault.hash("idempotency_key", f"{self._is_test}\x1f{idempotency_key}")

    def _request_hash(self, request: OrderRequest) -> str:
        content: dict[str, Any] = {
            "charge": charged(request.charge),
            "reference": request.reference,
            "user_id": request.user_id,
            "expires_at": request.expires_at.isoformat() if request.expires_at else None,
            "billing_key_id": request.billing_key_id,
        }
        return self._vault.hash("order_request", json.dumps(content, sort_keys=True))

    async def get(self, order_id: str) -> tuple[Order, Sequence[Payment]]:
        """With its payments, the oldest first. Raises: OrderNotFound."""
        async with self._database.transaction() as session:
            order = await session.get(Order, order_id)
            payments = await session.scalars(
                select(Payment).where(Payment.order_id == order_id).order_by(Payment.order_no)
            )
            found = payments.all()
        if order is None:
            raise OrderNotFound
        return order, found

    async def payments(
        self,
        *,
        state: PaymentState | None = None,
        user_id: str | None = None,
        limit: int,
        before: str | None = None,
    ) -> Page[Payment]:
        query = select(Payment)
        if state is not None:
            query = query.where(Payment.state == state)
        if user_id is not None:
            query = query.where(Payment.user_id == user_id)
        return await self._database.page(query, key=Payment.order_no, limit=limit, before=before)


def latest(payments: Sequence[Payment]) -> Payment | None:
    """The one that counts: the one that is not over, or else the last."""
    alive = [payment for payment in payments if not payment.is_in(*OVER)]
    return next(reversed(alive or list(payments)), None)
