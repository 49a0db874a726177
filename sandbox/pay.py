"""The host of Toss Pay: one-off and recurring payments (reference of Apps in Toss, 8 and 9)."""

import re
from typing import Any

from starlette.requests import Request
from typing_extensions import override

from sandbox.clock import pay_time
from sandbox.faults import CallName, FaultOrder, ResultType
from sandbox.partner import (
    UNAUTHENTICATED,
    Call,
    InvalidFields,
    PartnerAnswer,
    PartnerFace,
    flag,
    json_object,
    optional_text,
    text,
    whole_number,
)
from sandbox.payments import Charge, Payment, PayMethod, PayStatus
from sandbox.shared import CallFailed
from sandbox.switches import StatusNotFound

_ORDER_NO = re.compile(r"[0-9A-Za-z_\-:.^@]{1,50}")
_LONGEST_DESC = 255
_NOT_IN_DESC = re.compile(r"[\\\"']")
_LARGEST_AMOUNT = 9_999_999
_REASON = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣ0-9A-Za-z_\-:.^@()\[\]#/!%?&]{1,55}")
_LONGEST_SPREAD = 12
_SMALLEST_SPREAD_AMOUNT = 50_000


class PayFace(PartnerFace):
    @override
    def _calls(self) -> list[Call]:
        return [
            (CallName.PAY_MAKE, "POST", "pay/make-payment", self._make),
            (CallName.PAY_EXECUTE, "POST", "pay/execute-payment", self._execute),
            (CallName.PAY_REFUND, "POST", "pay/refund-payment", self._refund),
            (CallName.PAY_STATUS, "POST", "pay/get-payment-status", self._status),
            (CallName.BILLING_CREATE, "POST", "pay/create-billing-key", self._create_key),
            (CallName.BILLING_EXECUTE, "POST", "pay/execute-billing", self._charge_key),
            (CallName.BILLING_STATUS, "POST", "pay/get-billing-key-status", self._key_status),
            (CallName.BILLING_REMOVE, "POST", "pay/remove-billing-key", self._remove_key),
            (CallName.BILLING_REFUND, "POST", "pay/refund-billing", self._refund),
        ]

    @override
    def _subject(self, app_name: str, call: CallName, fields: dict[str, Any]) -> str | None:
        order_no, pay_token, key = (fields.get(name) for name in ("orderNo", "payToken", "wrappedToken"))
        if isinstance(order_no, str):
            return order_no
        if isinstance(pay_token, str):
            return self._state.pay.order_no_of(app_name, pay_token)
        return self._state.billing.id_of(app_name, key) if isinstance(key, str) else None

    # One-off

    def _make(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        charge = _charge(fields, is_test=flag(fields, "isTestPayment"))
        payment = self._state.pay.make(app_name, self._user(app_name, request), charge)
        return self._paid_for({"payToken": payment.pay_token})

    def _execute(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        payment = self._state.pay.execute(
            app_name,
            pay_token=text(fields, "payToken"),
            order_no=optional_text(fields, "orderNo"),
            is_test=flag(fields, "isTestPayment"),
            user=self._user(app_name, request),
        )
        return self._executed(payment)

    def _executed(self, payment: Payment) -> PartnerAnswer:
        assert payment.paid_at is not None
        return self._paid_for(
            {
                "code": 0,
                "mode": payment.mode,
                "orderNo": payment.order_no,
                "payToken": payment.pay_token,
                "amount": self._amount(payment.amount),
                "discountedAmount": self._amount(payment.discount),
                "paidAmount": self._amount(payment.paid_amount),
                "approvalTime": pay_time(payment.paid_at),
                "stateMsg": "결제 완료",
                "payMethod": payment.charge.method.value,
                "transactionId": payment.pay_transaction,
                **_card(payment),
                "cashReceiptMgtKey": None,
                **_account(payment),
                "msg": None,
                "errorCode": None,
            }
        )

    def _refund(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        pay_token, is_test = text(fields, "payToken"), flag(fields, "isTestPayment")
        self._check_reason(fields)
        payment = self._state.pay.refund(
            app_name, self._user(app_name, request), pay_token=pay_token, is_test=is_test
        )
        assert payment.refunded_at is not None
        return self._paid_for(
            {
                "refundNo": payment.refund_no,
                "approvalTime": pay_time(payment.refunded_at),
                "cashReceiptMgtKey": None,
                "refundableAmount": self._amount(0),
                "discountedAmount": self._amount(payment.discount),
                "paidAmount": self._amount(payment.paid_amount),
                "refundedAmount": self._amount(payment.amount),
                "refundedDiscountAmount": self._amount(payment.discount),
                "refundedPaidAmount": self._amount(payment.paid_amount),
                "payToken": payment.pay_token,
                "transactionId": payment.refund_transaction,
                **_card(payment),
                **_account(payment),
            }
        )

    def _check_reason(self, fields: dict[str, Any]) -> None:
        reason, switches = optional_text(fields, "reason"), self._state.switches
        if reason is None:
            if switches.refund_reason_required:
                raise InvalidFields("reason", "is missing")
            return
        if not _REASON.fullmatch(reason.replace(" ", "-") if switches.refund_reason_blanks else reason):
            raise InvalidFields("reason", "is longer than 55, or has a character that is not allowed", reason)

    def _status(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        pay_token, order_no = optional_text(fields, "payToken"), optional_text(fields, "orderNo")
        is_test = flag(fields, "isTestPayment")
        if not self._state.switches.status_by_order_no or pay_token is order_no is None:
            for name in ("payToken", "orderNo"):
                text(fields, name)
        payment = self._state.pay.look_up(
            app_name, self._user(app_name, request), pay_token=pay_token, order_no=order_no, is_test=is_test
        )
        is_paid = payment.paid_at is not None
        is_refundable = payment.status is PayStatus.COMPLETE
        discount = payment.discount if is_paid else 0
        return self._paid_for(
            {
                "mode": payment.mode,
                "payToken": payment.pay_token,
                "orderNo": payment.order_no,
                "payStatus": payment.status.value,
                "payMethod": payment.charge.method.value if is_paid else None,
                "amount": self._amount(payment.amount),
                "discountedAmount": self._amount(discount),
                "discountAmountV2": self._amount(discount),
                "paidPointV2": self._amount(0),
                "paidAmount": self._amount(payment.paid_amount if is_paid else 0),
                "refundableAmount": self._amount(payment.amount if is_refundable else 0),
                **{name: self._amount(part) for name, part in payment.charge.parts().items()},
                "disposableCupDeposit": self._amount(0),
                **_account(payment),
                "card": _card(payment) if _is_paid_by(payment, PayMethod.CARD) else None,
                "transactions": self._transactions(payment),
                "createdTs": pay_time(payment.made_at),
                "paidTs": payment.paid_at and pay_time(payment.paid_at),
            }
        )

    def _transactions(self, payment: Payment) -> list[dict[str, Any]]:
        steps = (
            ("PAY", payment.pay_transaction, payment.paid_at, 1),
            ("REFUND", payment.refund_transaction, payment.refunded_at, -1),
        )
        return [
            {
                "stepType": step,
                "transactionId": transaction,
                "transactionAmount": self._amount(sign * payment.amount),
                "paidAmount": self._amount(sign * payment.paid_amount),
                "discountedAmount": self._amount(sign * payment.discount),
                "pointAmount": self._amount(0),
                "regTs": pay_time(at),
            }
            for step, transaction, at, sign in steps
            if at is not None
        ]

    # Recurring

    def _create_key(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        fields = json_object(request, body)
        key = self._state.billing.create(
            app_name,
            product_desc=_product_desc(fields),
            is_test=flag(fields, "isTestPayment"),
            user=self._user(app_name, request),
        )
        answer = self._paid_for({"wrappedToken": key.wrapped_token})
        answer.subject = key.id
        return answer

    def _charge_key(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        """By analogy with execute-payment, but what the digest does not name may be left out."""
        fields = json_object(request, body)
        wrapped_token = text(fields, "wrappedToken")
        asked = _charge({"amountTaxFree": 0} | fields, is_test=False)
        if asked.spread_out and asked.amount < _SMALLEST_SPREAD_AMOUNT:
            raise CallFailed("CARD_MIN_AMOUNT_FOR_SPREADOUT_ERROR", "no instalments for so little")
        is_test = flag(fields, "isTestPayment") if "isTestPayment" in fields else None
        payment = self._state.billing.charge(
            app_name, self._user(app_name, request), wrapped_token, asked, is_test=is_test
        )
        return self._executed(payment)

    def _key_status(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        wrapped_token = text(json_object(request, body), "wrappedToken")
        key = self._state.billing.look_up(app_name, self._user(app_name, request), wrapped_token)
        return self._paid_for({self._state.switches.billing_status_field: key.status.value})

    def _remove_key(self, app_name: str, request: Request, body: bytes) -> PartnerAnswer:
        wrapped_token = text(json_object(request, body), "wrappedToken")
        self._state.billing.remove(app_name, self._user(app_name, request), wrapped_token)
        return self._paid_for({})

    # What answers look like

    def _paid_for(self, payload: dict[str, Any]) -> PartnerAnswer:
        if not self._state.switches.pay_nulls:
            payload = {name: value for name, value in payload.items() if value is not None}
        return self._success(payload)

    def _amount(self, value: int) -> int | str:
        return str(value) if self._state.switches.amounts_as_text else value

    @override
    def _refused(self, call: CallName, failed: CallFailed) -> PartnerAnswer:
        switches, is_missing = self._state.switches, failed.code == "TRANSACTION_NOT_FOUND"
        if call is CallName.PAY_STATUS and is_missing and switches.status_not_found is StatusNotFound.HTTP_404:
            return self._failed(404, failed.code, str(failed))
        if not switches.inner_failure or failed.code == UNAUTHENTICATED:
            return super()._refused(call, failed)
        answer = self._success(self._inner_failure(failed.code))
        answer.outcome, answer.note = failed.code, str(failed)
        return answer

    def _inner_failure(self, code: str) -> dict[str, Any]:
        return {"code": -1, "errorCode": code, "msg": self._reason(code)}

    @override
    def _ordered_failure(self, order: FaultOrder) -> tuple[int, dict[str, Any]]:
        is_inner = self._state.switches.inner_failure and order.result_type is ResultType.FAIL
        if is_inner and order.code is not None and not order.code.isdigit():
            return 200, self._success(self._inner_failure(order.code)).body
        return super()._ordered_failure(order)


def _charge(fields: dict[str, Any], *, is_test: bool) -> Charge:
    """Reference 8.2. Raises `InvalidFields`."""
    order_no = text(fields, "orderNo")
    if not _ORDER_NO.fullmatch(order_no):
        raise InvalidFields("orderNo", "is longer than 50, or has a character that is not allowed", order_no)
    for name, words in (
        ("cashReceiptTradeOption", {"GENERAL", "CULTURE", "PUBLIC_TP"}),
        ("installment", {"USE", "NOT_USE"}),
    ):
        if (word := optional_text(fields, name)) is not None and word not in words:
            raise InvalidFields(name, "is none of the words", word)
    if fields.get("cashReceipt") is not None:
        flag(fields, "cashReceipt")
    amount = whole_number(fields, "amount", least=1, most=_LARGEST_AMOUNT)
    parts = {
        name: whole_number(fields, name, most=amount)
        for name in ("amountTaxable", "amountVat", "amountServiceFee")
        if fields.get(name) is not None
    }
    tax_free = whole_number(fields, "amountTaxFree", most=amount)
    if tax_free + sum(parts.values()) > amount:
        raise InvalidFields("amount", "is less than its parts", amount)
    spread_out = fields.get("spreadOut")
    return Charge(
        order_no=order_no,
        product_desc=_product_desc(fields),
        amount=amount,
        amount_tax_free=tax_free,
        amount_taxable=parts.get("amountTaxable"),
        amount_vat=parts.get("amountVat"),
        amount_service_fee=parts.get("amountServiceFee", 0),
        method=PayMethod.CARD if optional_text(fields, "enablePayMethods") == "CARD" else PayMethod.TOSS_MONEY,
        spread_out=0 if spread_out is None else whole_number(fields, "spreadOut", most=_LONGEST_SPREAD),
        is_test=is_test,
    )


def _product_desc(fields: dict[str, Any]) -> str:
    product_desc = text(fields, "productDesc")
    # The single quote is forbidden by plain Toss Pay only.
    if len(product_desc) > _LONGEST_DESC or product_desc.isspace() or _NOT_IN_DESC.search(product_desc):
        raise InvalidFields("productDesc", "is blank, longer than 255, or has a backslash or quote", product_desc)
    return product_desc


def _card(payment: Payment) -> dict[str, Any]:
    """Made up; null unless it was paid by card."""
    card = {
        "cardCompanyCode": 4,
        "cardCompanyName": "국민",
        "cardAuthorizationNo": "00000000",  # of tests (reference 8.3)
        "spreadOut": payment.charge.spread_out,
        "noInterest": False,
        "salesCheckLinkUrl": "https://pay.sandbox.invalid/sales-check",
        "cardMethodType": "CREDIT",
        "cardUserType": "PERSONAL",
        "cardNumber": "94301234****5678",
        "cardNum4Print": "5678",
        "cardBinNumber": "943012",
    }
    return card if _is_paid_by(payment, PayMethod.CARD) else dict.fromkeys(card)


def _account(payment: Payment) -> dict[str, Any]:
    """Made up; null unless it was paid with Toss money."""
    account = {"accountBankCode": "092", "accountBankName": "토스뱅크", "accountNumber": "1000****1234"}
    return account if _is_paid_by(payment, PayMethod.TOSS_MONEY) else dict.fromkeys(account)


def _is_paid_by(payment: Payment, method: PayMethod) -> bool:
    return payment.paid_at is not None and payment.charge.method is method
