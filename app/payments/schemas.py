"""Payments on our wire: camelCase JSON, input checks, what each door shows."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, model_validator
from typing_extensions import override

from app.database import Page
from app.payments.billing import KeyState
from app.payments.catalogue import AmountFields, ChargeFields, ProductId
from app.payments.orders import OrderRequest
from app.payments.states import PaymentState
from app.payments.tables import BillingKey, Order, Payment, PaymentStep
from app.wire import Input, Wire

MAX_REASON = 55
"""As the OpenAPI page has it; the guide names no number (apps-in-toss reference 8.4, 18)."""
REASON = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣA-Za-z0-9_\-:.^@()\[\]#/!%?&]+")
"""Hangul, digits, letters and a few signs; no blank is among them (apps-in-toss reference 8.4)."""
USER_ID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
LEAST_SPREAD = 50_000
"""Whole KRW, for instalments (apps-in-toss reference 9)."""


def _reason(text: str) -> str:
    if REASON.fullmatch(text) is None:
        raise ValueError("may hold Hangul, letters, digits and _-:.^@()[]#/!%?&")
    return text


def _is_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be an ISO 8601 text with its offset")  # noqa: TRY004 - pydantic's way to refuse
    return value


def _storable(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


class BeginRequest(Input):
    """Either of the two. An amount is never among what a mini-app says."""

    product_id: ProductId | None = None
    order_id: Annotated[str | None, Field(pattern=USER_ID)] = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.product_id is None) == (self.order_id is None):
            raise ValueError("name a product or an order")
        return self


class OrderRequestBody(ChargeFields):
    """What is to be paid."""

    reference: Annotated[str | None, Field(max_length=64, pattern=r"^[!-~]+$")] = Field(
        None, description="Your own name for it; no personal data"
    )
    user_id: Annotated[str | None, Field(pattern=USER_ID)] = Field(
        None, description="Who may pay it, from the introspection; without it, whoever begins first"
    )
    expires_at: Annotated[AwareDatetime, BeforeValidator(_is_text), AfterValidator(_storable)] | None = Field(
        None, description="From then on no payment of it begins"
    )

    def request(self) -> OrderRequest:
        return OrderRequest(self.charge(), self.reference, self.user_id, self.expires_at)


class ChargeRequest(AmountFields):
    """What is charged to a billing key."""

    reference: Annotated[str | None, Field(max_length=64, pattern=r"^[!-~]+$")] = None
    spread_out: Annotated[int | None, Field(strict=True, ge=0, le=12)] = Field(
        None, description=f"Months of instalments, of {LEAST_SPREAD} KRW or more"
    )

    @model_validator(mode="after")
    def _is_enough_to_spread(self) -> Self:
        if self.spread_out and self.amount < LEAST_SPREAD:
            raise ValueError("is too little for instalments")
        return self

    @override
    def _options(self) -> dict[str, Any]:
        return {"spreadOut": self.spread_out}

    def request(self, billing_key_id: str) -> OrderRequest:
        return OrderRequest(self.charge(), self.reference, billing_key_id=billing_key_id)


class RefundRequest(Input):
    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON), AfterValidator(_reason)] = Field(
        description="Shown to the user by Toss. Hangul, letters, digits and _-:.^@()[]#/!%?&"
    )


class PaymentBody(Wire):
    order_no: str
    state: PaymentState = Field(description="PENDING, REFUNDING: nobody knows yet; ask again, never pay again")
    amount: int = Field(description="Whole KRW")
    product_desc: str
    product_id: str | None
    order_id: str | None
    is_test: bool
    created_at: datetime
    paid_at: datetime | None
    refunded_at: datetime | None
    toss_code: str | None = Field(description="Toss's last no")

    @classmethod
    def of(cls, payment: Payment) -> Self:
        return cls(**_shown(payment))


class BegunPaymentBody(PaymentBody):
    pay_token: str = Field(description="For `checkoutPayment`; whatever that answers, only `execute` moves money")

    @classmethod
    def begun(cls, payment: Payment, pay_token: str) -> Self:
        return cls(**_shown(payment), pay_token=pay_token)


class StepBody(Wire):
    at: datetime
    from_state: str | None
    to_state: str
    cause: str
    actor: str | None = Field(description="Id of the server key that asked for it")
    detail: str | None

    @classmethod
    def of(cls, step: PaymentStep) -> Self:
        return cls(
            at=step.at,
            from_state=step.from_state,
            to_state=step.to_state,
            cause=step.cause,
            actor=step.actor,
            detail=step.detail,
        )


class FullPaymentBody(PaymentBody):
    user_id: str
    billing_key_id: str | None
    paid_amount: int | None = Field(description="Without discounts and points")
    pay_method: str | None
    transaction_id: str | None = Field(description="Toss's key for reconciliation")
    hold_reason: str | None = Field(description="In what Toss contradicts our record")
    refund_no: str | None
    refund_by: str | None = Field(description="Id of the server key that asked for the refund")
    refund_asked_at: datetime | None
    next_check_at: datetime | None = Field(description="When `reconcile` asks Toss again")

    @override
    @classmethod
    def of(cls, payment: Payment) -> Self:
        return cls(**_shown_in_full(payment))


class PaymentWithStepsBody(FullPaymentBody):
    steps: list[StepBody] = Field(description="Every move, the first one first")

    @classmethod
    def with_steps(cls, payment: Payment, steps: Sequence[PaymentStep]) -> Self:
        return cls(**_shown_in_full(payment), steps=[StepBody.of(step) for step in steps])


class PaymentsBody(Wire):
    payments: list[FullPaymentBody] = Field(description="Newest first")
    next: str | None = Field(description="`before` of the next page; null at the end")

    @classmethod
    def of(cls, page: Page[Payment]) -> Self:
        return cls(payments=[FullPaymentBody.of(payment) for payment in page.items], next=page.next)


class OrderBody(Wire):
    order_id: str
    amount: int
    product_desc: str
    reference: str | None
    user_id: str | None
    billing_key_id: str | None
    is_test: bool
    created_at: datetime
    expires_at: datetime | None
    canceled_at: datetime | None
    payments: list[FullPaymentBody] = Field(description="Oldest first; at most one of them is not over")

    @classmethod
    def of(cls, order: Order, payments: Sequence[Payment] = ()) -> Self:
        return cls(
            order_id=order.order_id,
            amount=order.amount,
            product_desc=order.product_desc,
            reference=order.reference,
            user_id=order.user_id,
            billing_key_id=order.billing_key_id,
            is_test=order.is_test,
            created_at=order.created_at,
            expires_at=order.expires_at,
            canceled_at=order.canceled_at,
            payments=[FullPaymentBody.of(payment) for payment in payments],
        )


class BillingKeyRequest(Input):
    product_id: ProductId = Field(description="Whose description the user sees when permitting it")


class BillingKeyBody(Wire):
    billing_key_id: str
    state: KeyState
    product_desc: str
    is_test: bool
    created_at: datetime
    changed_at: datetime

    @classmethod
    def of(cls, key: BillingKey) -> Self:
        return cls(**_shown_key(key))


class BegunBillingKeyBody(BillingKeyBody):
    wrapped_token: str = Field(description="For `requestTossPayPaysBilling`")

    @classmethod
    def begun(cls, key: BillingKey, wrapped_token: str) -> Self:
        return cls(**_shown_key(key), wrapped_token=wrapped_token)


class BillingKeysBody(Wire):
    billing_keys: list[BillingKeyBody] = Field(description="Newest first")

    @classmethod
    def of(cls, keys: Sequence[BillingKey]) -> Self:
        return cls(billing_keys=[BillingKeyBody.of(key) for key in keys])


def _shown(payment: Payment) -> dict[str, Any]:
    return {name: getattr(payment, name) for name in PaymentBody.model_fields}


def _shown_in_full(payment: Payment) -> dict[str, Any]:
    return {name: getattr(payment, name) for name in FullPaymentBody.model_fields}


def _shown_key(key: BillingKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in BillingKeyBody.model_fields}
