"""What a mini-app, its user and the partner's server do about money, each in one call."""

from dataclasses import dataclass, field
from typing import Any

import httpx2
from sqlalchemy import select

from app.events.tables import Event
from app.payments.tables import Payment
from app.server_keys import Scope
from sandbox.payments import Payment as TossPayment
from tests.scenarios import Bff, Login

ORDER = {"description": "회원권 1년", "amount": 12000, "amountTaxFree": 0}


@dataclass
class Shop:
    """One user in front of one BFF."""

    bff: Bff
    login: Login
    partner: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def opened(cls, bff: Bff, user: str = "man") -> "Shop":
        partner = await bff.server_key(*Scope) if bff.resources is not None else {}
        return cls(bff, await bff.log_in(user), partner)

    async def begin(self, **what: str) -> httpx2.Response:
        return await self.bff.http.post("/api/v1/payments", json=what, headers=self.login.headers)

    async def begun(self, **what: str) -> dict[str, Any]:
        answer = await self.begin(**(what or {"productId": "americano"}))
        assert answer.status_code == 201, answer.text
        return answer.json()

    def authenticate(self, payment: dict[str, Any]) -> None:
        self.bff.sandbox.state.pay.authenticate(payment["payToken"])

    async def approved(self, **what: str) -> dict[str, Any]:
        """A payment that its user has authenticated in Toss's sheet."""
        payment = await self.begun(**what)
        self.authenticate(payment)
        return payment

    async def execute(self, payment: dict[str, Any]) -> httpx2.Response:
        path = f"/api/v1/payments/{payment['orderNo']}/execute"
        return await self.bff.http.post(path, headers=self.login.headers)

    async def paid(self, **what: str) -> dict[str, Any]:
        payment = await self.approved(**what)
        answer = await self.execute(payment)
        assert answer.status_code == 200, answer.text
        assert answer.json()["state"] == "PAID"
        return payment

    async def look(self, payment: dict[str, Any]) -> httpx2.Response:
        return await self.bff.http.get(f"/api/v1/payments/{payment['orderNo']}", headers=self.login.headers)

    async def state(self, payment: dict[str, Any]) -> str:
        return (await self.row(payment)).state

    async def as_partner(self, method: str, path: str, **content: Any) -> httpx2.Response:
        headers = self.partner | content.pop("headers", {})
        return await self.bff.http.request(method, f"/server/v1{path}", headers=headers, **content)

    async def order(self, key: str = "key-1", **changes: Any) -> httpx2.Response:
        headers = {"Idempotency-Key": key}
        return await self.as_partner("POST", "/orders", json=ORDER | changes, headers=headers)

    async def refund(self, payment: dict[str, Any], reason: str = "단순변심") -> httpx2.Response:
        return await self.as_partner("POST", f"/payments/{payment['orderNo']}/refund", json={"reason": reason})

    async def recheck(self, payment: dict[str, Any]) -> httpx2.Response:
        return await self.as_partner("POST", f"/payments/{payment['orderNo']}/recheck")

    def at_toss(self, payment: dict[str, Any]) -> TossPayment:
        return self.bff.sandbox.state.pay.payment(payment["orderNo"])

    async def row(self, payment: dict[str, Any]) -> Payment:
        assert self.bff.resources is not None
        return await self.bff.resources.payments.ledger.get(payment["orderNo"])

    async def events(self, payment: dict[str, Any]) -> list[str]:
        """Types of what the partner is told of it, the oldest first."""
        assert self.bff.resources is not None
        async with self.bff.resources.database.transaction() as session:
            query = select(Event.type).where(Event.subject == payment["orderNo"]).order_by(Event.event_id)
            return list((await session.scalars(query)).all())
