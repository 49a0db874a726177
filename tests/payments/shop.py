"""What a mini-app, its user and the partner's server do about money, each in one call."""

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx2
from sqlalchemy import select

from app.events.tables import Event
from app.payments.states import SEEN
from app.payments.tables import Payment, PaymentStep
from app.server_keys import Scope
from sandbox.billing import BillingKey as TossBillingKey
from sandbox.payments import Payment as TossPayment
from tests.conftest import PAYMENT_AUTH
from tests.scenarios import Bff, Login

CALLBACK = "/callbacks/toss/payment"
FROM_TOSS = {"Authorization": "Basic " + base64.b64encode(PAYMENT_AUTH.encode()).decode()}

NOT_PAID = {None, "PAY_STANDBY", "PAY_APPROVED", "PAY_CANCEL"}
AT_TOSS = {
    "PAID": {"PAY_COMPLETE", "SETTLEMENT_COMPLETE"},
    "REFUNDED": {"REFUND_SUCCESS", "SETTLEMENT_REFUND_COMPLETE"},
    "CANCELED": NOT_PAID,
    "FAILED": NOT_PAID,
}
"""What Toss's books say (None: nothing) when ours are right."""

ORDER = {"description": "회원권 1년", "amount": 12000, "amountTaxFree": 0}
CHARGE = {"description": "월 구독", "amount": 9900, "amountTaxFree": 0}


@dataclass
class Shop:
    """One user in front of one BFF."""

    bff: Bff
    login: Login
    partner: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)
    """The payment or billing key that the next call is about."""

    @classmethod
    async def opened(cls, bff: Bff, user: str = "man") -> "Shop":
        partner = await bff.server_key(*Scope) if bff.resources is not None else {}
        return cls(bff, await bff.log_in(user), partner)

    async def beside(self, user: str) -> "Shop":
        """Another user in front of the same BFF."""
        return Shop(self.bff, await self.bff.log_in(user), self.partner)

    def pass_time(self, **by: float) -> None:
        """Here and at Toss."""
        self.bff.clock.advance(**by)
        self.bff.sandbox.state.clock.advance(timedelta(**by).total_seconds())

    async def as_user(self, method: str, path: str, **content: Any) -> httpx2.Response:
        return await self.bff.http.request(method, f"/api/v1{path}", headers=self.login.headers, **content)

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

    async def ordered(self, key: str = "key-1", **changes: Any) -> str:
        """The orderId."""
        answer = await self.order(key, **changes)
        assert answer.status_code == 201, answer.text
        return answer.json()["orderId"]

    async def cancel(self, order_id: str) -> httpx2.Response:
        return await self.as_partner("DELETE", f"/orders/{order_id}")

    async def refund(self, payment: dict[str, Any], reason: str = "단순변심") -> httpx2.Response:
        return await self.as_partner("POST", f"/payments/{payment['orderNo']}/refund", json={"reason": reason})

    async def recheck(self, payment: dict[str, Any]) -> httpx2.Response:
        return await self.as_partner("POST", f"/payments/{payment['orderNo']}/recheck")

    # --- Billing keys ---------------------------------------------------------------------------------------

    async def begun_key(self, product_id: str = "americano") -> dict[str, Any]:
        answer = await self.as_user("POST", "/billing-keys", json={"productId": product_id})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def confirm(self, key: dict[str, Any]) -> httpx2.Response:
        return await self.as_user("POST", f"/billing-keys/{key['billingKeyId']}/confirm")

    async def remove(self, key: dict[str, Any]) -> httpx2.Response:
        return await self.as_user("DELETE", f"/billing-keys/{key['billingKeyId']}")

    async def active_key(self) -> dict[str, Any]:
        """One that its user has permitted in Toss's sheet."""
        key = await self.begun_key()
        self.bff.sandbox.state.billing.authenticate(key["wrappedToken"])
        answer = await self.confirm(key)
        assert answer.json()["state"] == "ACTIVE", answer.text
        return key

    def key_at_toss(self, key: dict[str, Any]) -> TossBillingKey:
        return self.bff.sandbox.state.billing.key(key["wrappedToken"])

    async def charge(
        self, key: dict[str, Any], idempotency_key: str = "charge-1", **changes: Any
    ) -> httpx2.Response:
        path, headers = f"/billing-keys/{key['billingKeyId']}/charges", {"Idempotency-Key": idempotency_key}
        return await self.as_partner("POST", path, json=CHARGE | changes, headers=headers)

    async def charged(self, key: dict[str, Any], idempotency_key: str = "charge-1") -> dict[str, Any]:
        answer = await self.charge(key, idempotency_key)
        assert (answer.status_code, answer.json()["state"]) == (200, "PAID"), answer.text
        return answer.json()

    # --- Books ----------------------------------------------------------------------------------------------

    async def payments(self) -> list[dict[str, Any]]:
        """All that we have, as the partner sees them, the oldest first."""
        answer = await self.as_partner("GET", "/payments", params={"limit": 200})
        assert answer.status_code == 200, answer.text
        return answer.json()["payments"][::-1]

    async def only_payment(self) -> dict[str, Any]:
        (payment,) = await self.payments()
        return payment

    async def steps(self, payment: dict[str, Any]) -> Sequence[PaymentStep]:
        assert self.bff.resources is not None
        return await self.bff.resources.payments.steps(payment["orderNo"])

    async def agreed(self, payment: dict[str, Any]) -> str:
        """The state, which is Toss's; money has moved at most once each way, and each way was told once."""
        at_toss, state = self.at_toss(payment), await self.state(payment)
        assert state == SEEN[at_toss.status], f"{state} here, {at_toss.status} at Toss"
        assert at_toss.executions <= 1
        assert at_toss.refunds <= at_toss.executions
        events = await self.events(payment)
        assert events.count("payment.paid") == at_toss.executions
        assert events.count("payment.refunded") == at_toss.refunds
        return state

    def at_toss(self, payment: dict[str, Any]) -> TossPayment:
        return self.bff.sandbox.state.pay.payment(payment["orderNo"])

    async def row(self, payment: dict[str, Any]) -> Payment:
        assert self.bff.resources is not None
        return await self.bff.resources.payments.ledger.get(payment["orderNo"])

    async def events(self, payment: dict[str, Any]) -> list[str]:
        """Types of what the partner is told of it, the oldest first."""
        assert self.bff.resources is not None
        async with self.bff.resources.database.transaction() as session:
            query = select(Event.type).where(Event.subject == payment["orderNo"]).order_by(Event.position)
            return list((await session.scalars(query)).all())

    async def rows(self) -> Sequence[Payment]:
        """All that there are, the oldest first."""
        assert self.bff.resources is not None
        async with self.bff.resources.database.transaction() as session:
            return (await session.scalars(select(Payment).order_by(Payment.order_no))).all()

    async def told(self) -> dict[str, list[str]]:
        """As `events`, of every payment."""
        assert self.bff.resources is not None
        told = defaultdict(list)
        async with self.bff.resources.database.transaction() as session:
            for event in await session.scalars(select(Event).order_by(Event.position)):
                told[event.subject].append(event.type)
        return told

    async def call_back(self, body: object, **headers: str) -> httpx2.Response:
        """Toss calls, with a body of JSON or of anything."""
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        return await self.bff.http.post(CALLBACK, content=content, headers=FROM_TOSS | headers)

    async def assert_books_agree(self) -> None:
        """Everything is over, ours and Toss's books say the same, and money went each way once at most."""
        told = await self.told()
        theirs = {payment.order_no: payment for payment in self.bff.sandbox.state.pay.payments()}
        ours = {payment.order_no: payment for payment in await self.rows()}
        assert theirs.keys() <= ours.keys()
        for order_no, own in ours.items():
            toss, events = theirs.get(order_no), told[order_no]
            counts = (toss.executions, toss.refunds) if toss else (0, 0)
            assert (toss and toss.status.value) in AT_TOSS[own.state], (own.state, toss)
            assert counts == {"PAID": (1, 0), "REFUNDED": (1, 1)}.get(own.state, (0, 0)), own.state
            assert (events.count("payment.paid"), events.count("payment.refunded")) == counts, events
            if toss is not None:
                assert (own.amount, own.is_test) == (toss.amount, toss.is_test)
            if toss is not None and toss.executions:
                assert (own.paid_amount, own.transaction_id) == (toss.paid_amount, toss.pay_transaction)
        paid = [payment.order_id for payment in ours.values() if payment.order_id and payment.paid_at]
        assert len(paid) == len(set(paid)), "an order was paid twice"
