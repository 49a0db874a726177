"""Toss Pay, one-off and recurring, with its wire models (apps-in-toss reference 8 and 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import Field

from app.toss.calls import observed
from app.toss.governor import Lane
from app.toss.partner import PartnerApi, PartnerWire, Payload, TossUser, plain_text, whole_number

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


class _Made(PartnerWire):
    pay_token: str = Field(alias="payToken", pattern=r"^[\x21-\x7e]{1,30}$", repr=False)


class _KeyMade(PartnerWire):
    """Of what length a wrappedToken is, nobody says."""

    wrapped_token: str = Field(alias="wrappedToken", pattern=r"^[\x21-\x7e]{1,8192}$", repr=False)


class PayApi:
    """One method per endpoint, P1 to P4; every method says when it may be called again."""

    def __init__(self, *, partner: PartnerApi, is_test: bool) -> None:
        self._partner = partner
        self.observe = partner.observe
        self._is_test = is_test

    @observed("pay.make")
    async def make(self, user: TossUser, order_no: str, charge: Charge) -> str:
        """The payToken. Moves no money. Raises: TossError."""
        body = {**_wanted(charge), "orderNo": order_no, "isTestPayment": self._is_test}
        payload = await self._partner.post(f"{PREFIX}/make-payment", body, headers=user.headers())
        return payload.parse(_Made).pay_token

    @observed("pay.execute")
    async def execute(self, user: TossUser, *, order_no: str, pay_token: str) -> Execution:
        """Moves the money. Never to be repeated before `status` was asked. Raises: TossError."""
        body = {"payToken": pay_token, "orderNo": order_no, "isTestPayment": self._is_test}
        return _execution(await self._partner.post(f"{PREFIX}/execute-payment", body, headers=user.headers()))

    @observed("pay.refund")
    async def refund(self, user: TossUser, *, pay_token: str, reason: str, lane: Lane = Lane.INTERACTIVE) -> Refund:
        """Gives all of it back. Never to be repeated before `status` was asked. Raises: TossError."""
        body = {"payToken": pay_token, "reason": reason, "isTestPayment": self._is_test}
        return _refund(
            await self._partner.post(f"{PREFIX}/refund-payment", body, headers=user.headers(), lane=lane)
        )

    @observed("pay.status")
    async def status(
        self, user: TossUser, *, order_no: str, pay_token: str | None, lane: Lane = Lane.INTERACTIVE
    ) -> Status:
        """May be repeated at will; a lost answer is asked for once more by itself.

        Without a payToken Toss may refuse (reference 8.5). Raises: TossError.
        """
        token = {} if pay_token is None else {"payToken": pay_token}
        body = {**token, "orderNo": order_no, "isTestPayment": self._is_test}
        return _status(
            await self._partner.ask(f"{PREFIX}/get-payment-status", body, headers=user.headers(), lane=lane)
        )


class BillingApi:
    """B1 to B5, of which only a digest is known (reference 9). What it leaves out is as for a payment."""

    def __init__(
        self, *, partner: PartnerApi, is_test: bool, path_prefix: str, refund_path: str, status_field: str
    ) -> None:
        self._partner = partner
        self.observe = partner.observe
        self._is_test = is_test
        self._prefix = path_prefix
        self._refund_path = refund_path
        self._status_field = status_field

    @observed("billing.create_key")
    async def create_key(self, user: TossUser, *, product_desc: str) -> str:
        """The wrappedToken. Raises: TossError."""
        body = {"productDesc": product_desc, "isTestPayment": self._is_test}
        return (await self._post(user, "create-billing-key", body)).parse(_KeyMade).wrapped_token

    @observed("billing.execute")
    async def execute(self, user: TossUser, *, wrapped_token: str, order_no: str, charge: Charge) -> Execution:
        """Moves the money; as `PayApi.execute`. `charge.options`: spreadOut."""
        body = {
            **_wanted(charge),
            "wrappedToken": wrapped_token,
            "orderNo": order_no,
            "isTestPayment": self._is_test,
        }
        return _execution(await self._post(user, "execute-billing", body))

    @observed("billing.key_status")
    async def key_status(self, user: TossUser, *, wrapped_token: str, lane: Lane = Lane.INTERACTIVE) -> str:
        """CREATE, AUTH, ACTIVE, REMOVE, FAIL, CANCEL (plain Toss Pay's words), or a new one.

        May be repeated at will; a lost answer is asked for once more by itself. Raises: TossError.
        """
        path, body = f"{self._prefix}/get-billing-key-status", {"wrappedToken": wrapped_token}
        payload = await self._partner.ask(path, body, headers=user.headers(), lane=lane)
        return payload.text(self._status_field)

    @observed("billing.remove_key")
    async def remove_key(self, user: TossUser, *, wrapped_token: str, lane: Lane = Lane.INTERACTIVE) -> None:
        """Raises: TossError."""
        await self._post(user, "remove-billing-key", {"wrappedToken": wrapped_token}, lane=lane)

    @observed("billing.refund")
    async def refund(self, user: TossUser, *, pay_token: str, reason: str, lane: Lane = Lane.INTERACTIVE) -> Refund:
        """As `PayApi.refund`, at the path that is set for charges."""
        body = {"payToken": pay_token, "reason": reason, "isTestPayment": self._is_test}
        return _refund(await self._post(user, self._refund_path, body, lane=lane))

    async def _post(
        self, user: TossUser, path: str, body: Mapping[str, Any], *, lane: Lane = Lane.INTERACTIVE
    ) -> Payload:
        return await self._partner.post(f"{self._prefix}/{path}", body, headers=user.headers(), lane=lane)


def _wanted(charge: Charge) -> dict[str, Any]:
    """What is not given is left out: Toss has a default for it, except for `amountTaxFree`."""
    optional = {
        "amountTaxable": charge.amount_taxable,
        "amountVat": charge.amount_vat,
        "amountServiceFee": charge.amount_service_fee,
    }
    return {
        **charge.options,  # first: no option takes the place of what is said below, or by the caller
        "productDesc": charge.product_desc,
        "amount": charge.amount,
        "amountTaxFree": charge.amount_tax_free,
        **{name: amount for name, amount in optional.items() if amount is not None},
    }


def _claim(fields: Mapping[str, Any]) -> Claim:
    return Claim(
        order_no=plain_text(fields.get("orderNo")),
        pay_token=plain_text(fields.get("payToken")),
        amount=whole_number(fields.get("amount")),
        mode=plain_text(fields.get("mode")),
    )


def _execution(payload: Payload) -> Execution:
    fields = payload.fields()
    return Execution(
        claim=_claim(fields),
        paid_amount=whole_number(fields.get("paidAmount")),
        pay_method=plain_text(fields.get("payMethod")),
        transaction_id=plain_text(fields.get("transactionId")),
    )


def _refund(payload: Payload) -> Refund:
    fields = payload.fields()
    return Refund(
        claim=_claim(fields),
        refund_no=plain_text(fields.get("refundNo")),
        refunded_amount=whole_number(fields.get("refundedAmount")),
        transaction_id=plain_text(fields.get("transactionId")),
    )


def _status(payload: Payload) -> Status:
    fields = payload.fields()
    return Status(
        claim=_claim(fields),
        pay_status=payload.text("payStatus"),
        pay_method=plain_text(fields.get("payMethod")),
        paid_amount=whole_number(fields.get("paidAmount")),
        refundable_amount=whole_number(fields.get("refundableAmount")),
        transactions=_transactions(fields.get("transactions")),
    )


def _transactions(listed: object) -> Sequence[Transaction]:
    """A step of which it is not said whether it paid or refunded tells nothing, and is left out."""
    steps = [step for step in listed if isinstance(step, dict)] if isinstance(listed, list) else []
    return tuple(
        Transaction(
            step_type=step_type,
            transaction_id=plain_text(step.get("transactionId")),
            amount=whole_number(step.get("transactionAmount")),
        )
        for step in steps
        if (step_type := plain_text(step.get("stepType"))) is not None
    )
