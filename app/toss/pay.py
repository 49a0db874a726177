"""Toss Pay, one-off and recurring, with its wire models (apps-in-toss reference 8 and 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.toss.governor import Lane
from app.toss.partner import PartnerApi, TossUser

PREFIX: Final = "/api-partner/v1/apps-in-toss/pay"


@dataclass(frozen=True)
class Charge:
    """What make-payment asks for besides the orderNo (reference 8.2). Amounts are whole KRW."""

    product_desc: str
    amount: int
    amount_tax_free: int
    amount_taxable: int | None = None
    amount_vat: int | None = None
    amount_service_fee: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """enablePayMethods, cashReceipt, cashReceiptTradeOption, installment, under Toss's own names."""


@dataclass(frozen=True)
class Claim:
    """What an answer of Toss says a payment is. None: the answer does not say it."""

    order_no: str | None
    pay_token: str | None = field(repr=False)
    amount: int | None
    mode: str | None
    """LIVE or TEST."""


@dataclass(frozen=True)
class Execution:
    claim: Claim
    paid_amount: int | None
    pay_method: str | None
    transaction_id: str | None


@dataclass(frozen=True)
class Refund:
    claim: Claim
    refund_no: str | None
    refunded_amount: int | None
    transaction_id: str | None


@dataclass(frozen=True)
class Transaction:
    step_type: str
    transaction_id: str | None
    amount: int | None


@dataclass(frozen=True)
class Status:
    claim: Claim
    pay_status: str
    """Of reference 8.6, or a word that is new to us."""
    pay_method: str | None
    paid_amount: int | None
    refundable_amount: int | None
    transactions: Sequence[Transaction]


class PayApi:
    """One method per endpoint, P1 to P4; every method says when it may be called again."""

    def __init__(self, *, partner: PartnerApi, is_test: bool) -> None:
        self._partner = partner
        self._is_test = is_test

    async def make(self, user: TossUser, order_no: str, charge: Charge) -> str:
        """The payToken. Moves no money. Raises: TossError."""
        raise NotImplementedError

    async def execute(self, user: TossUser, *, order_no: str, pay_token: str) -> Execution:
        """Moves the money. Never to be repeated before `status` was asked. Raises: TossError."""
        raise NotImplementedError

    async def refund(self, user: TossUser, *, pay_token: str, reason: str, lane: Lane = Lane.INTERACTIVE) -> Refund:
        """Gives all of it back. Never to be repeated before `status` was asked. Raises: TossError."""
        raise NotImplementedError

    async def status(
        self, user: TossUser, *, order_no: str, pay_token: str | None, lane: Lane = Lane.INTERACTIVE
    ) -> Status:
        """May be repeated at will. Without a payToken Toss may refuse (reference 8.5). Raises: TossError."""
        raise NotImplementedError


class BillingApi:
    """B1 to B5, of which only a digest is known (reference 9)."""

    def __init__(
        self, *, partner: PartnerApi, is_test: bool, path_prefix: str, refund_path: str, status_field: str
    ) -> None:
        self._partner = partner

    async def create_key(self, user: TossUser, *, product_desc: str) -> str:
        """The wrappedToken. Raises: TossError."""
        raise NotImplementedError

    async def execute(self, user: TossUser, *, wrapped_token: str, order_no: str, charge: Charge) -> Execution:
        """Moves the money; as `PayApi.execute`."""
        raise NotImplementedError

    async def key_status(self, user: TossUser, *, wrapped_token: str, lane: Lane = Lane.INTERACTIVE) -> str:
        """CREATE, AUTH, ACTIVE, REMOVE, FAIL, CANCEL (plain Toss Pay's words), or a new one. Raises: TossError."""
        raise NotImplementedError

    async def remove_key(self, user: TossUser, *, wrapped_token: str, lane: Lane = Lane.INTERACTIVE) -> None:
        """Raises: TossError."""
        raise NotImplementedError

    async def refund(self, user: TossUser, *, pay_token: str, reason: str, lane: Lane = Lane.INTERACTIVE) -> Refund:
        """As `PayApi.refund`, at the path that is set for charges."""
        raise NotImplementedError
