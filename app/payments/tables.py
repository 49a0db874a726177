"""What is stored of orders, payments, their history and billing keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ColumnElement, Index, String, UniqueConstraint, literal_column
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, Instant
from app.payments.states import UNSETTLED, PaymentState
from app.toss.pay import Charge
from app.vault import Place, Sealed, SealedColumn

# Literals, not parameters: with those no plan could use the partial index.
IS_UNSETTLED: ColumnElement[bool] = literal_column("state").in_(
    [literal_column(f"'{state}'") for state in UNSETTLED]
)
MAX_METHOD, MAX_REFERENCE = 32, 64
"""Characters of Toss's words that are kept."""


class Charged:
    """What is charged, as it was when the order or payment was made: a catalogue may change."""

    product_desc: Mapped[str] = mapped_column(String(255))
    amount: Mapped[int]
    """Whole KRW, as all amounts."""
    amount_tax_free: Mapped[int]
    amount_taxable: Mapped[int | None]
    amount_vat: Mapped[int | None]
    amount_service_fee: Mapped[int | None]
    options: Mapped[dict[str, Any]] = mapped_column(JSON)

    def charge(self) -> Charge:
        return Charge(
            product_desc=self.product_desc,
            amount=self.amount,
            amount_tax_free=self.amount_tax_free,
            amount_taxable=self.amount_taxable,
            amount_vat=self.amount_vat,
            amount_service_fee=self.amount_service_fee,
            options=self.options,
        )


def charged(charge: Charge) -> dict[str, Any]:
    """The columns of `Charged`."""
    return {**vars(charge), "options": dict(charge.options)}


class Order(Charged, Base):
    """What the partner's server wants paid, or charged to a billing key: once, however many payments it takes."""

    __tablename__ = "payment_order"
    __table_args__ = (UniqueConstraint("idempotency_hash"), Index("ix_payment_order_created_at", "created_at"))

    order_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    is_test: Mapped[bool]
    idempotency_hash: Mapped[str] = mapped_column(String(64))
    request_hash: Mapped[str] = mapped_column(String(64))
    """Of what came with the idempotency key: another request must not be answered with this one."""
    created_by: Mapped[str] = mapped_column(String(16))
    """Id of the server key."""
    reference: Mapped[str | None] = mapped_column(String(64))
    """The partner's own name for it."""
    user_id: Mapped[str | None] = mapped_column(String(36))
    """Who may pay it; None: whoever comes first."""
    key_hash: Mapped[str | None] = mapped_column(String(64))
    """Who has come first."""
    billing_key_id: Mapped[str | None] = mapped_column(String(36))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    """From then on no payment of it begins."""
    canceled_at: Mapped[datetime | None] = mapped_column(Instant)


class Payment(Charged, Base):
    """One payment at Toss, known there by `order_no`, which is never used again."""

    __tablename__ = "payment"
    __table_args__ = (
        UniqueConstraint("open_key"),
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint(
            "(state IN ('CREATED', 'READY', 'PENDING', 'REFUNDING')) = (next_check_at IS NOT NULL)",
            name="next_check",
        ),
        Index("ix_payment_next_check_at", "next_check_at"),
        Index("ix_payment_order_id", "order_id"),
        Index("ix_payment_user_id", "user_id"),
        Index("ix_payment_changed_at", "changed_at"),
        Index(
            "ix_payment_unsettled",
            "state",
            "changed_at",
            sqlite_where=IS_UNSETTLED,
            postgresql_where=IS_UNSETTLED,
        ),
    )

    order_no: Mapped[str] = mapped_column(String(50), primary_key=True)
    is_test: Mapped[bool]
    order_id: Mapped[str | None] = mapped_column(String(36))
    product_id: Mapped[str | None] = mapped_column(String(64))
    billing_key_id: Mapped[str | None] = mapped_column(String(36))
    open_key: Mapped[str | None] = mapped_column(String(36))
    """The order, unless this payment is over: an order has one payment at a time."""
    user_id: Mapped[str] = mapped_column(String(36))
    key_hash: Mapped[str] = mapped_column(String(64))
    """Of the user's key at Toss: stays the same for who leaves and comes back."""
    toss_user: Mapped[Sealed] = mapped_column(SealedColumn)
    """Whom Toss is told with every call, also about a refund long after (decision 0019)."""
    pay_token: Mapped[Sealed | None] = mapped_column(SealedColumn)
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    """Grows with every change of state: an answer of Toss about an older one is not applied."""
    quiet_until: Mapped[datetime | None] = mapped_column(Instant)
    """Until then a call may still be under way at Toss: that it shows no effect yet proves nothing."""
    next_check_at: Mapped[datetime | None] = mapped_column(Instant)
    checks: Mapped[int]
    """How often Toss was asked since the last change."""
    created_at: Mapped[datetime] = mapped_column(Instant)
    changed_at: Mapped[datetime] = mapped_column(Instant)
    paid_at: Mapped[datetime | None] = mapped_column(Instant)
    paid_amount: Mapped[int | None]
    """Without discounts and points."""
    pay_method: Mapped[str | None] = mapped_column(String(MAX_METHOD))
    transaction_id: Mapped[str | None] = mapped_column(String(MAX_REFERENCE))
    toss_code: Mapped[str | None] = mapped_column(String(64))
    """Toss's last no."""
    hold_reason: Mapped[str | None] = mapped_column(String(32))
    refund_reason: Mapped[Sealed | None] = mapped_column(SealedColumn)
    """None once Toss has refused it: then there is nothing to keep trying."""
    refund_by: Mapped[str | None] = mapped_column(String(16))
    """Id of the server key that asked for it."""
    refund_asked_at: Mapped[datetime | None] = mapped_column(Instant)
    refund_no: Mapped[str | None] = mapped_column(String(MAX_REFERENCE))
    refunded_at: Mapped[datetime | None] = mapped_column(Instant)

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.order_no)

    @property
    def is_refund_promised(self) -> bool:
        """Whether we were asked for a refund and have not said no; of one in Toss's console we know nothing."""
        return self.refund_reason is not None

    def is_in(self, *states: PaymentState) -> bool:
        return self.state in states


class PaymentStep(Base):
    """One move of a payment, for whoever has to explain later what happened."""

    __tablename__ = "payment_step"
    __table_args__ = (Index("ix_payment_step_order_no", "order_no"),)

    step_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    order_no: Mapped[str] = mapped_column(String(50))
    number: Mapped[int]
    """The payment's version after it."""
    at: Mapped[datetime] = mapped_column(Instant)
    from_state: Mapped[str | None] = mapped_column(String(16))
    to_state: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str | None] = mapped_column(String(16))
    """Id of the server key, where one asked for it."""
    detail: Mapped[str | None] = mapped_column(String(64))
    """Toss's code, or in what an answer contradicted us."""


class BillingKey(Base):
    """A standing permission to charge a user, known at Toss by its wrappedToken (apps-in-toss reference 9)."""

    __tablename__ = "billing_key"
    __table_args__ = (
        Index("ix_billing_key_user_id", "user_id"),
        Index("ix_billing_key_state_next_check_at", "state", "next_check_at"),
    )

    billing_key_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    is_test: Mapped[bool]
    user_id: Mapped[str] = mapped_column(String(36))
    key_hash: Mapped[str] = mapped_column(String(64))
    toss_user: Mapped[Sealed] = mapped_column(SealedColumn)
    product_desc: Mapped[str] = mapped_column(String(255))
    wrapped_token: Mapped[Sealed | None] = mapped_column(SealedColumn)
    state: Mapped[str] = mapped_column(String(16))
    next_check_at: Mapped[datetime | None] = mapped_column(Instant)
    checks: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Instant)
    changed_at: Mapped[datetime] = mapped_column(Instant)

    def place_of(self, column: str) -> Place:
        return Place(self.__tablename__, column, self.billing_key_id)
