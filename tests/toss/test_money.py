"""Every call of money over real mutual TLS, whatever Toss leaves open and whatever goes wrong on the way."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

from app.toss.errors import BudgetExhausted, OutcomeUnknown, TossFault, TossRejected, Unintelligible
from app.toss.governor import USUAL_PAUSE
from app.toss.iap import IapApi
from app.toss.partner import PartnerApi, TossUser
from app.toss.pay import BillingApi, Charge, Claim, PayApi, Transaction
from app.toss.transport import MutualTransport
from sandbox.faults import ResultType
from sandbox.miniapps import DEFAULT_APP
from sandbox.payments import PayStatus
from sandbox.switches import MoneySwitches, Switches
from tests.toss.money import fault_of
from tests.toss.partners import LONG, Pot, governor_of, rows_with_every_pair, transport_at

READS = ["pay_status", "billing_status", "iap_status"]
"""Asked for once more by themselves."""
WRITES = [
    *("pay_make", "pay_execute", "pay_refund"),
    *("billing_create", "billing_execute", "billing_remove", "billing_refund"),
]
CALLS = [*READS, *WRITES]
INNER_FAULTS = [kind.value for kind in ResultType if kind is not ResultType.FAIL]
CHARGE = Charge(product_desc="아메리카노 1잔", amount=4500, amount_tax_free=0)
REASON = "단순변심"
SKU = "ait.0000010000.ab12.cd34.0000000001"


@dataclass
class Bench:
    """A mini-app's server with a user whom Toss knows, and one budget for both hosts."""

    pay: PayApi
    billing: BillingApi
    iap: IapApi
    pay_host: PartnerApi
    pot: Pot
    sandbox: object
    user: TossUser
    made: int = 0

    @classmethod
    def over(
        cls, transport: MutualTransport, sandbox, *, is_test: bool = True, deadline: timedelta = LONG
    ) -> "Bench":
        pot, toss = Pot(), sandbox.state.mini_apps
        governor = governor_of(pot)
        partner, pay_host = (
            PartnerApi(transport=transport, governor=governor, base_url=url, deadline=deadline)
            for url in (sandbox.partner_url, sandbox.pay_url)
        )
        billing = BillingApi(
            partner=pay_host,
            is_test=is_test,
            path_prefix="/api-partner/v1/apps-in-toss/pay",
            refund_path="refund-billing",
            status_field=sandbox.state.switches.billing_status_field,
        )
        toss.log_in("man")
        user = TossUser(user_key=toss.user_key("man"))
        pay = PayApi(partner=pay_host, is_test=is_test)
        return cls(pay, billing, IapApi(partner=partner), pay_host, pot, sandbox, user)

    def order_no(self) -> str:
        self.made += 1
        return f"order-{self.made}"

    async def approved(self) -> tuple[str, str]:
        """An orderNo and a payToken, which can be executed."""
        order_no = self.order_no()
        token = await self.pay.make(self.user, order_no, CHARGE)
        self.sandbox.state.pay.authenticate(token)
        return order_no, token

    async def paid(self) -> tuple[str, str]:
        order_no, token = await self.approved()
        await self.pay.execute(self.user, order_no=order_no, pay_token=token)
        return order_no, token

    async def active_key(self) -> str:
        key = await self.billing.create_key(self.user, product_desc="월 구독")
        self.sandbox.state.billing.authenticate(key)
        return key

    async def calls(self) -> dict[str, Callable[["Bench"], Awaitable[object]]]:
        """Each would succeed. They are asked for of a bench, which may be a hasty one."""
        user, key, doomed = self.user, await self.active_key(), await self.active_key()
        (order_no, token), (_, paid) = await self.approved(), await self.paid()
        charge = await self.billing.execute(user, wrapped_token=key, order_no=self.order_no(), charge=CHARGE)
        new, next_charge = self.order_no(), self.order_no()
        order_id = self.sandbox.state.iap.buy("man", SKU)
        return {
            "pay_make": lambda b: b.pay.make(user, new, CHARGE),
            "pay_execute": lambda b: b.pay.execute(user, order_no=order_no, pay_token=token),
            "pay_refund": lambda b: b.pay.refund(user, pay_token=paid, reason=REASON),
            "pay_status": lambda b: b.pay.status(user, order_no=order_no, pay_token=token),
            "billing_create": lambda b: b.billing.create_key(user, product_desc="월 구독"),
            "billing_execute": lambda b: b.billing.execute(
                user, wrapped_token=key, order_no=next_charge, charge=CHARGE
            ),
            "billing_status": lambda b: b.billing.key_status(user, wrapped_token=key),
            "billing_remove": lambda b: b.billing.remove_key(user, wrapped_token=doomed),
            "billing_refund": lambda b: b.billing.refund(user, pay_token=charge.claim.pay_token, reason=REASON),
            "iap_status": lambda b: b.iap.order_status(order_id, user=user),
        }


@pytest.fixture
def bench(sandbox, transport):
    return Bench.over(transport, sandbox)


async def rejected(call: Awaitable[object]) -> tuple[int, str]:
    error = await fault_of(call, TossRejected)
    return error.http_status, error.error_code


# --- What the reference leaves open -----------------------------------------------------------------------

SWITCHES: dict[str, list[object]] = {
    "both_user_headers": ["reject", "prefer_user_key"],
    "pay_nulls": [True, False],
    "inner_failure": [False, True],
    "amounts_as_text": [False, True],
    "execute_repeat": ["existing_payment", "success"],
    "execute_cancelled_code": ["PAY_CANCEL_ITS_NOT_CANCELABLE_STATUS", "COMMON_ITS_NOT_ABLE_TO_CHANGE_STATUS"],
    "refund_repeat": ["success", "already_refunded"],
    "refund_reason_required": [True, False],
    "refund_reason_blanks": [False, True],
    "status_by_order_no": [True, False],
    "status_not_found": ["fail", "http_404"],
    "payment_life_seconds": [900, 60],
    "stays_in_progress": [False, True],
    "discount": [0, 500],
    "billing_status_field": ["status", "billingKeyStatus"],
    "iap_user_header_required": [False, True],
    "iap_words_of_2025": [False, True],
    "iap_zone": [False, True],
    "iap_knows_subscriptions": [True, False],
    "payload_key": ["success", "result"],
    "numbers_as_text": [False, True],
    "failure_without_success": [False, True],
    "short_errors": [False, True],
    "explicit_error_null": [False, True],
    "rate_limit_status": [200, 429, 400, 503],
    "tls_1_3": [True, False],
}
ALONE = [{name: value} for name, values in SWITCHES.items() for value in values[1:]]
TOGETHER = rows_with_every_pair(SWITCHES)


def test_every_switch_of_money_is_turned():
    assert set(MoneySwitches.model_fields) <= set(SWITCHES)


@pytest.mark.parametrize("how", [{}, *ALONE], ids=str)
async def test_the_whole_story_under_each_switch(sandbox, pair_folder, how):
    await tell_the_story(sandbox, pair_folder, how)


@pytest.mark.parametrize("number", range(len(TOGETHER)))
async def test_the_whole_story_under_every_two_switches(sandbox, pair_folder, number):
    await tell_the_story(sandbox, pair_folder, TOGETHER[number])


async def tell_the_story(sandbox, folder, how: dict[str, object]) -> None:
    switches = sandbox.state.set_switches(**how)
    async with transport_at(sandbox.pay_url, ca_file=sandbox.ca_file, folder=folder) as transport:
        bench = Bench.over(transport, sandbox)
        await check_payment(bench, switches)
        await check_refund(bench, switches)
        await check_refusals(bench, switches)
        await check_billing(bench, switches)
        await check_purchase(bench, switches)
        assert bench.pot.asked == sandbox.state.budget.calls(DEFAULT_APP) == sandbox.state.count()
        await check_limit(bench, switches)


async def check_payment(bench: Bench, switches: Switches) -> None:
    """One payment; of the user's two, one is known by an anonymous key."""
    pay, toss = bench.pay, bench.sandbox.state.pay
    paid = CHARGE.amount - switches.discount
    for user in (bench.user, TossUser(anon_key=bench.sandbox.state.mini_apps.anon_key("man"))):
        order_no = bench.order_no()
        token = await pay.make(user, order_no, CHARGE)
        claim = Claim(order_no, token, CHARGE.amount, "TEST")
        again = await pay.status(user, order_no=order_no, pay_token=token)
        assert (again.claim, again.pay_status, again.transactions) == (claim, "PAY_STANDBY", ())
        assert again.pay_method is None
        early = pay.execute(user, order_no=order_no, pay_token=token)
        assert await rejected(early) == (200, "EXECUTE_PAY_NOT_APPROVED")
        toss.authenticate(token)
        wrong = pay.execute(user, order_no="another", pay_token=token)
        assert await rejected(wrong) == (200, "COMMON_INVALID_PARAMETER")
        if switches.stays_in_progress:
            pending = (200, "TRANSACTION_PENDING_ERROR")
            assert await rejected(pay.execute(user, order_no=order_no, pay_token=token)) == pending
            running = await pay.status(user, order_no=order_no, pay_token=token)
            assert (running.claim, running.pay_status, running.paid_amount) == (claim, "PAY_PROGRESS", 0)
            assert await rejected(pay.execute(user, order_no=order_no, pay_token=token)) == pending
            toss.finish(token)
        else:
            executed = await pay.execute(user, order_no=order_no, pay_token=token)
            assert (executed.claim, executed.paid_amount, executed.pay_method) == (claim, paid, "TOSS_MONEY")
            assert executed.transaction_id == toss.payment(token).pay_transaction
        standing = await pay.status(user, order_no=order_no, pay_token=token)
        assert (standing.claim, standing.pay_status) == (claim, "PAY_COMPLETE")
        assert (standing.paid_amount, standing.refundable_amount) == (paid, CHARGE.amount)
        step = Transaction("PAY", toss.payment(token).pay_transaction, CHARGE.amount)
        assert standing.transactions == (step,)
        second = pay.execute(user, order_no=order_no, pay_token=token)
        if switches.execute_repeat == "success":
            assert (await second).claim == claim
        else:
            assert await rejected(second) == (200, "PAYMENT_EXISTING_PAYMENT")
        assert toss.payment(token).executions == 1


async def check_refund(bench: Bench, switches: Switches) -> None:
    pay, toss, user = bench.pay, bench.sandbox.state.pay, bench.user
    payment = toss.payments()[0]
    order_no, token = payment.order_no, payment.pay_token
    if switches.stays_in_progress:
        for _ in range(2):
            call = pay.refund(user, pay_token=token, reason=REASON)
            assert await rejected(call) == (200, "TRANSACTION_PENDING_ERROR")
        assert (await pay.status(user, order_no=order_no, pay_token=token)).pay_status == "REFUND_PROGRESS"
        toss.finish(token)
    else:
        refunded = await pay.refund(user, pay_token=token, reason=REASON)
        assert refunded.claim == Claim(None, token, None, None)
        assert (refunded.refunded_amount, refunded.refund_no, refunded.transaction_id) == (
            CHARGE.amount,
            toss.payment(token).refund_no,
            toss.payment(token).refund_transaction,
        )
    standing = await pay.status(user, order_no=order_no, pay_token=token)
    assert (standing.pay_status, standing.refundable_amount) == ("REFUND_SUCCESS", 0)
    assert [step.amount for step in standing.transactions] == [CHARGE.amount, -CHARGE.amount]
    assert standing.transactions[1].transaction_id == toss.payment(token).refund_transaction
    again = pay.refund(user, pay_token=token, reason=REASON)
    if switches.refund_repeat == "success":
        assert (await again).refunded_amount == CHARGE.amount
    else:
        assert await rejected(again) == (200, "REFUND_ALREADY_REFUNDED")
    assert toss.payment(token).refunds == 1


async def check_refusals(bench: Bench, switches: Switches) -> None:
    pay, toss, user = bench.pay, bench.sandbox.state.pay, bench.user
    order_no, token = await bench.approved()
    assert await rejected(pay.make(user, order_no, CHARGE)) == (200, "PAYMENT_DUPLICATION_ORDER_NO")
    without = pay.status(user, order_no=order_no, pay_token=None)
    if switches.status_by_order_no:
        assert (await without).claim.pay_token == token
    else:
        assert await rejected(without) == (400, "INVALID_PARAMETER")
    missing = (404 if switches.status_not_found == "http_404" else 200, "TRANSACTION_NOT_FOUND")
    assert await rejected(pay.status(user, order_no="none", pay_token=token)) == missing
    live = PayApi(partner=bench.pay_host, is_test=False)
    assert await rejected(live.status(user, order_no=order_no, pay_token=token)) == missing
    other_mode = live.execute(user, order_no=order_no, pay_token=token)
    assert await rejected(other_mode) == (200, "TRANSACTION_NOT_FOUND")
    stranger = TossUser(anon_key=bench.sandbox.state.mini_apps.anon_key("minor"))
    theirs = pay.execute(stranger, order_no=order_no, pay_token=token)
    assert await rejected(theirs) == (200, "PAY_UNAUTHORIZED")
    nobody = pay.execute(TossUser(user_key=1), order_no=order_no, pay_token=token)
    assert await rejected(nobody) == (200, "4010")
    blank = pay.refund(user, pay_token=token, reason="두 낱말")
    outcome = (200, "TRANSACTION_NOT_COMPLETE") if switches.refund_reason_blanks else (400, "INVALID_PARAMETER")
    assert await rejected(blank) == outcome
    bench.sandbox.state.clock.advance(switches.payment_life_seconds)
    assert (await pay.status(user, order_no=order_no, pay_token=token)).pay_status == "PAY_CANCEL"
    late = pay.execute(user, order_no=order_no, pay_token=token)
    assert await rejected(late) == (200, switches.execute_cancelled_code)
    assert toss.payment(token).executions == 0


async def check_billing(bench: Bench, switches: Switches) -> None:
    billing, user, toss = bench.billing, bench.user, bench.sandbox.state
    key = await billing.create_key(user, product_desc="월 구독")
    assert await billing.key_status(user, wrapped_token=key) == "CREATE"
    order_no = bench.order_no()

    def charging(number: str) -> Awaitable[object]:
        return billing.execute(user, wrapped_token=key, order_no=number, charge=CHARGE)

    assert await rejected(charging(order_no)) == (200, "BILLING_KEY_AUTH_ERROR")
    toss.billing.authenticate(key, is_active=False)
    assert await billing.key_status(user, wrapped_token=key) == "AUTH"
    toss.billing.authenticate(key)
    assert await billing.key_status(user, wrapped_token=key) == "ACTIVE"
    if switches.stays_in_progress:
        assert await rejected(charging(order_no)) == (200, "TRANSACTION_PENDING_ERROR")
        toss.pay.finish(order_no)
    else:
        charge = await charging(order_no)
        token = toss.pay.payment(order_no).pay_token
        assert charge.claim == Claim(order_no, token, CHARGE.amount, "TEST")
        assert charge.paid_amount == CHARGE.amount - switches.discount
        refunded = await billing.refund(user, pay_token=token, reason=REASON)
        assert refunded.refunded_amount == CHARGE.amount
    assert await rejected(charging(order_no)) == (200, "PAYMENT_DUPLICATION_ORDER_NO")
    assert toss.pay.payment(order_no).executions == 1
    await billing.remove_key(user, wrapped_token=key)
    assert await billing.key_status(user, wrapped_token=key) == "REMOVE"
    assert await rejected(charging(bench.order_no())) == (200, "BILLING_KEY_UNREGISTERED_BY_CANCEL")
    unknown = billing.key_status(user, wrapped_token="no-such-key")
    assert await rejected(unknown) == (200, "COMMON_BILLING_KEY_NOT_FOUND")


async def check_purchase(bench: Bench, switches: Switches) -> None:
    iap, user, toss = bench.iap, bench.user, bench.sandbox.state.iap
    paid, delivered = "PAYMENT_COMPLETED", "PURCHASED"
    if switches.iap_words_of_2025:
        paid, delivered = delivered, paid
    order_id = toss.buy("man", SKU)
    said = await iap.order_status(order_id, user=user)
    assert (said.status, said.sku) == (paid, SKU)
    assert ("+09:00" in said.determined_at) == switches.iap_zone
    anonymous = [None, TossUser(anon_key=bench.sandbox.state.mini_apps.anon_key("man"))]
    for caller in anonymous:
        call = iap.order_status(order_id, user=caller)
        if switches.iap_user_header_required:
            assert await rejected(call) == (200, "4010")
        else:
            assert (await call).status == paid
    toss.complete(order_id)
    assert (await iap.order_status(order_id, user=user)).status == delivered
    toss.refund(order_id)
    assert (await iap.order_status(order_id, user=user)).status == "REFUNDED"
    for other in (toss.buy("minor", SKU), "no-such-order"):
        missing = await iap.order_status(other, user=user)
        assert (missing.status, missing.sku, missing.determined_at) == ("NOT_FOUND", None, None)
    foreign = toss.buy("man", SKU, app_name="another-app")
    assert (await iap.order_status(foreign, user=user)).status == "MINIAPP_MISMATCH"
    subscription = toss.buy_subscription("man", SKU)
    expected = paid if switches.iap_knows_subscriptions else "NOT_FOUND"
    assert (await iap.order_status(subscription, user=user)).status == expected


async def check_limit(bench: Bench, switches: Switches) -> None:
    """Toss says 4095 at one host; then no host is asked."""
    budget = bench.sandbox.state.budget
    budget.set_limit(DEFAULT_APP, 0, window_seconds=30)
    error = await fault_of(bench.pay.status(bench.user, order_no="x", pay_token="x"), BudgetExhausted)
    if switches.short_errors:
        assert error.retry_after == USUAL_PAUSE
    else:
        assert timedelta(seconds=29) <= error.retry_after <= timedelta(seconds=30)
    calls = budget.calls(DEFAULT_APP)
    for call in (
        bench.pay.execute(bench.user, order_no="x", pay_token="x"),
        bench.billing.key_status(bench.user, wrapped_token="x"),
        bench.iap.order_status("x", user=bench.user),
    ):
        assert (await fault_of(call, BudgetExhausted)).limit == "pause"
    assert budget.calls(DEFAULT_APP) == calls


# --- States -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(PayStatus))
async def test_every_state_is_told(bench, sandbox, status):
    order_no, token = await bench.approved()
    sandbox.state.pay._payments[DEFAULT_APP, order_no].status = status
    assert (await bench.pay.status(bench.user, order_no=order_no, pay_token=token)).pay_status == status


# --- Faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["slow", "hold_before", "hold"])
async def test_an_answer_that_does_not_come_in_time_leaves_the_outcome_unknown(
    bench, sandbox, transport, call, kind
):
    calls = await bench.calls()
    hasty = Bench.over(transport, sandbox, deadline=timedelta(seconds=0.4))
    tries = 2 if call in READS else 1
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, kind, times=tries, delay=30 if kind == "slow" else 0)
    error = await fault_of(calls[call](hasty), OutcomeUnknown)
    assert type(error) is OutcomeUnknown
    # Until Toss knows that nobody waits any more: else a call might take effect in the next test.
    await asyncio.to_thread(
        sandbox.state.wait_until,
        lambda state: state.count(call) == asked + tries and state.in_flight(call) == 0,
    )
    took_effect = sandbox.state.calls(call)[-1].answer == "SUCCESS"
    assert took_effect == (kind == "hold")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
async def test_a_lost_answer_leaves_the_outcome_unknown_and_only_a_read_is_asked_for_again(
    bench, sandbox, call, kind
):
    calls = await bench.calls()
    asked, admitted = sandbox.state.count(call), len(bench.pot.admitted)
    sandbox.state.order_fault(call, kind)
    if call in READS:
        assert await calls[call](bench)
        sandbox.state.order_fault(call, kind, times=2)
        tries = 4
    else:
        tries = 1
    await fault_of(calls[call](bench), OutcomeUnknown)
    assert sandbox.state.count(call) == asked + tries
    assert len(bench.pot.admitted) == admitted + tries
    assert sandbox.state.pending_faults() == []
    took_effect = sandbox.state.calls(call)[-1].answer == "SUCCESS"
    assert took_effect == (kind == "reset_after")


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
async def test_after_a_lost_answer_the_status_tells_whether_money_moved(bench, sandbox, kind):
    order_no, token = await bench.approved()
    expected = {"reset_before": ["PAY_APPROVED", "PAY_COMPLETE"], "reset_after": ["PAY_COMPLETE", "REFUND_SUCCESS"]}
    sandbox.state.order_fault("pay_execute", kind)
    await fault_of(bench.pay.execute(bench.user, order_no=order_no, pay_token=token), OutcomeUnknown)
    told = [(await bench.pay.status(bench.user, order_no=order_no, pay_token=token)).pay_status]
    if kind == "reset_before":
        await bench.pay.execute(bench.user, order_no=order_no, pay_token=token)
    sandbox.state.order_fault("pay_refund", kind)
    await fault_of(bench.pay.refund(bench.user, pay_token=token, reason=REASON), OutcomeUnknown)
    told.append((await bench.pay.status(bench.user, order_no=order_no, pay_token=token)).pay_status)
    assert told == expected[kind]
    assert sandbox.state.pay.payment(token).executions == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_gateways_page_is_unintelligible_and_never_repeated(bench, sandbox, call, after_effect):
    calls = await bench.calls()
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, "html_502", after_effect=after_effect)
    error = await fault_of(calls[call](bench), Unintelligible)
    assert (error.http_status, error.is_json, error.was_refused) == (502, False, False)
    assert sandbox.state.count(call) == asked + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize("how", [{}, {"short_errors": True, "failure_without_success": True}], ids=str)
async def test_a_failure_is_a_no_whatever_the_status(bench, sandbox, call, status, how):
    calls = await bench.calls()
    sandbox.state.set_switches(**how)
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, "fail", code="COMMON_BREAK_TIME_OF_BANK", http_status=status)
    assert await rejected(calls[call](bench)) == (status, "COMMON_BREAK_TIME_OF_BANK")
    assert sandbox.state.count(call) == asked + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("result_type", INNER_FAULTS)
@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_failure_inside_toss_leaves_the_outcome_unknown(bench, sandbox, call, result_type, after_effect):
    calls = await bench.calls()
    tries = 2 if call in READS else 1
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(
        call, "fail", result_type=result_type, http_status=500, times=tries, after_effect=after_effect
    )
    error = await fault_of(calls[call](bench), TossFault)
    assert error.error_code == "INTERNAL_ERROR"
    assert sandbox.state.count(call) == asked + tries


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("result_type", list(ResultType))
async def test_4095_pauses_every_call(bench, sandbox, call, result_type):
    calls = await bench.calls()
    asked = sandbox.state.count()
    sandbox.state.order_fault(
        call, "fail", code="4095", retry_after_seconds=42, result_type=result_type, http_status=429
    )
    for name in (call, *CALLS):
        error = await fault_of(calls[name](bench), BudgetExhausted)
        assert error.retry_after == timedelta(seconds=42)
    assert sandbox.state.count() == asked + 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["extra_field", "big_body"])
async def test_what_nobody_knows_is_ignored(bench, sandbox, call, kind):
    calls = await bench.calls()
    sandbox.state.order_fault(call, kind, size=100_000)
    await calls[call](bench)
    assert sandbox.state.pending_faults() == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("field", ["resultType", "success"])
@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
async def test_without_what_matters_an_answer_is_unintelligible(bench, sandbox, call, field, kind):
    calls = await bench.calls()
    asked = sandbox.state.count(call)
    sandbox.state.order_fault(call, kind, field=field)
    is_enough = call == "billing_remove" and field == "success"
    says_nothing = (
        kind == "wrong_type" and field == "success" and call not in (*READS, "pay_make", "billing_create")
    )
    if is_enough:
        await calls[call](bench)
    elif says_nothing:
        assert (await calls[call](bench)).claim == Claim(None, None, None, None)
    else:
        error = await fault_of(calls[call](bench), Unintelligible)
        assert (error.http_status, error.is_json) == (200, True)
    assert sandbox.state.count(call) == asked + 1


@pytest.mark.parametrize("kind", ["missing_field", "wrong_type"])
@pytest.mark.parametrize(
    ("call", "field"),
    [
        *(("pay_make", "payToken"), ("billing_create", "wrappedToken")),
        *(("pay_status", "payStatus"), ("billing_status", "status"), ("iap_status", "status")),
    ],
)
async def test_without_its_one_field_an_answer_is_unintelligible(bench, sandbox, call, field, kind):
    calls = await bench.calls()
    sandbox.state.order_fault(call, kind, field=field)
    assert (await fault_of(calls[call](bench), Unintelligible)).http_status == 200


@pytest.mark.parametrize("call", ["pay_execute", "pay_status", "billing_execute"])
@pytest.mark.parametrize("field", ["orderNo", "payToken", "amount", "mode"])
@pytest.mark.parametrize("kind", ["missing_field", "wrong_type", "wrong_value"])
async def test_a_claim_says_what_the_answer_says(bench, sandbox, call, field, kind):
    calls = await bench.calls()
    name = {"orderNo": "order_no", "payToken": "pay_token"}.get(field, field)
    sandbox.state.order_fault(call, kind, field=field)
    claim = vars((await calls[call](bench)).claim)
    payment = sandbox.state.pay.payment(sandbox.state.calls(call)[-1].subject)
    truth = {"order_no": payment.order_no, "pay_token": payment.pay_token, "amount": 4500, "mode": "TEST"}
    different = {each for each in truth if claim[each] != truth[each]}
    assert different == {name}
    assert (claim[name] is None) == (kind != "wrong_value")


@pytest.mark.parametrize("call", CALLS)
async def test_half_an_answer_is_unintelligible(bench, sandbox, call):
    calls = await bench.calls()
    sandbox.state.order_fault(call, "truncated_json")
    error = await fault_of(calls[call](bench), Unintelligible)
    assert (error.http_status, error.is_json) == (200, False)


# --- Live -------------------------------------------------------------------------------------------------


async def test_live_payments_are_of_the_live_mode(sandbox, transport):
    bench = Bench.over(transport, sandbox, is_test=False)
    order_no, token = await bench.approved()
    executed = await bench.pay.execute(bench.user, order_no=order_no, pay_token=token)
    assert executed.claim == Claim(order_no, token, CHARGE.amount, "LIVE")
    assert not sandbox.state.pay.payment(token).is_test
    key = await bench.active_key()
    charge = await bench.billing.execute(bench.user, wrapped_token=key, order_no="live-2", charge=CHARGE)
    assert charge.claim.mode == "LIVE"
