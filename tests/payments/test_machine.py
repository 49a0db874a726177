"""Interleavings of everybody who has a hand in a payment: at the end our books equal Toss's books (G13).

The user, the partner's server, Toss, its callbacks, time, faults of the network and the death of our process come
in any order that hypothesis thinks of. A call that is held, or stopped at a checkpoint, stays under way while
everything else goes on, until it is let go or its process dies.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import delete

from app.callbacks.tables import Notice
from app.events.tables import Event
from app.main import create_app
from app.payments.states import OPEN, OVER
from app.payments.tables import BillingKey, Order, Payment, PaymentStep
from app.reconcile import reconcile
from app.resources import open_resources
from app.settings import BudgetSettings, Settings
from sandbox.faults import CallName, FaultKind
from sandbox.payments import Charge as TossCharge
from sandbox.payments import PayStatus
from sandbox.server import SandboxServer
from sandbox.shared import CallFailed, NotPossible
from sandbox.state import CallRecord
from tests.conftest import settings_for
from tests.payments.shop import CHARGE, Shop
from tests.scenarios import MINI_APP_ADDRESS, Bff, TestClock

CALL_LIFE = timedelta(seconds=20)
"""A call that Toss has not answered by then is given up here (settings: toss.call_deadline)."""
TOSS_LIFE = timedelta(seconds=40)
"""And what it has asked for happens at Toss by then, or never: that is what `quiet` stands for."""
NOBODY = "https://127.0.0.1:1"
MOVING = (CallName.PAY_EXECUTE, CallName.PAY_REFUND, CallName.BILLING_EXECUTE)
ENDED = "ENDED"


@dataclass
class Heard:
    """What callers were told of one payment, and what was wanted of it."""

    states: set[str] = field(default_factory=set)
    is_execution_wanted: bool = False
    is_refund_promised: bool = False
    """Asked for, and not refused."""
    is_refund_wanted: bool = False
    is_refunded_in_console: bool = False


class World:
    """One shop and all that happens to it. An action that has no object yet does nothing."""

    def __init__(self, settings: Settings, sandbox: SandboxServer) -> None:
        self._settings = settings
        self._toss = sandbox.state
        self._app = sandbox.app_name
        self._sandbox = sandbox
        self._process = AsyncExitStack()
        self._clock = TestClock()
        self._routes = create_app(settings, clock=self._clock)  # once: it takes longer than all the rest of a start
        transport = httpx2.ASGITransport(self._routes, client=(MINI_APP_ADDRESS, 40000))
        http = httpx2.AsyncClient(transport=transport, base_url="http://bff.test")
        self._bff = Bff(http, sandbox, clock=self._clock)
        self.shop: Shop

    async def start(self) -> None:
        """What a new process has of its own, over the same database."""
        opening = open_resources(self._settings, clock=self._clock)
        resources = await self._process.enter_async_context(opening)
        for service in (resources.payments, resources.billing, resources.inbox):
            service._checkpoint = self._checkpoint
        resources.inbox._answer_within = timedelta(seconds=30)
        self._routes.state.resources = self._bff.resources = resources

    async def stop(self) -> None:
        await self._process.aclose()

    async def begin_anew(self) -> None:
        """As if nothing had ever happened."""
        self._toss.reset()
        self._toss.budget.set_limit(self._app, 10**9)
        self._toss.callbacks.configure(kind="payment", url="https://bff.test", is_automatic=False)
        self._clock.offset = timedelta()
        async with self._resources.database.transaction() as session:
            for table in (PaymentStep, Payment, Order, BillingKey, Event, Notice):
                await session.execute(delete(table))
        self.shop = await Shop.opened(self._bff)
        self._heard: defaultdict[str, Heard] = defaultdict(Heard)
        self._begun: dict[str, dict[str, Any]] = {}
        self._orders: dict[int, str] = {}
        self._canceled_orders: set[str] = set()
        self._key: dict[str, Any] | None = None
        self._has_lied = False
        self._is_reachable = True
        self._under_way: dict[asyncio.Task[None], datetime] = {}
        self._stop_at: str | None = None
        self._gates: list[asyncio.Event] = []
        self._has_stopped = asyncio.Event()

    @property
    def _resources(self) -> Any:
        return self._bff.resources

    # --- Calls, and what stops them -----------------------------------------------------------------------

    async def _checkpoint(self, step: str) -> None:
        if step == self._stop_at:
            self._stop_at = None
            gate = asyncio.Event()
            self._gates.append(gate)
            self._has_stopped.set()
            await gate.wait()

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Until it is done, is stopped at a checkpoint, or is held at Toss."""
        task = asyncio.create_task(self._sent(work))
        self._under_way[task] = self._clock()
        self._has_stopped.clear()
        held = self._toss.held()
        is_over = False

        def wake(_task: object = None) -> None:
            nonlocal is_over
            is_over = True
            with self._toss._change():
                pass

        task.add_done_callback(wake)
        stopped = asyncio.create_task(self._has_stopped.wait())
        holding = asyncio.create_task(
            asyncio.to_thread(self._toss.wait_until, lambda state: is_over or state.held() > held)
        )
        await asyncio.wait((task, stopped, holding), return_when=asyncio.FIRST_COMPLETED)
        wake()
        stopped.cancel()
        await asyncio.gather(stopped, holding, return_exceptions=True)
        self._collect()

    async def _sent(self, work: Coroutine[Any, Any, None]) -> None:
        apis = [self._resources.payments._pay._partner, self._resources.billing._billing._partner]
        if self._is_reachable:
            await work
            return
        self._is_reachable = True
        for api in apis:
            api._base_url = NOBODY
        try:
            await work
        finally:
            for api in apis:
                api._base_url = self._sandbox.pay_url

    def _collect(self) -> None:
        for task in [task for task in self._under_way if task.done()]:
            del self._under_way[task]
            if not task.cancelled():
                task.result()

    async def release(self) -> None:
        """All that is stopped or held goes on to its end."""
        self._stop_at = None
        self._toss._faults.orders[:] = [
            order
            for order in self._toss._faults.orders
            if order.kind not in (FaultKind.HOLD, FaultKind.HOLD_BEFORE)
        ]
        for gate in self._gates:
            gate.set()
        self._gates.clear()
        self._toss.release()
        await asyncio.gather(*self._under_way)
        self._collect()

    async def crash(self) -> None:
        """The process dies with all that it has under way, and another one takes its place."""
        tasks = [*self._under_way, *self._resources.inbox._tasks()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._toss.wait_until, lambda state: state.held() == 0)
        self._under_way.clear()
        self._gates.clear()
        await self.stop()
        await self.start()

    async def stop_at(self, step: str) -> None:
        self._stop_at = step

    async def fault(self, call: str, kind: str, details: dict[str, Any]) -> None:
        self._has_lied |= kind == "wrong_value" and details["field"] != "payStatus"
        self._toss.order_fault(call, kind, **details)

    async def unreachable(self) -> None:
        """The next caller's calls find no way to Toss."""
        self._is_reachable = False

    async def wait(self, seconds: int) -> None:
        """Time passes, for us and for Toss. No call is under way for longer than it lives."""
        until = self._clock() + timedelta(seconds=seconds)
        if any(since + CALL_LIFE < until for since in self._under_way.values()):
            await self.release()
        self._clock.advance(seconds=seconds)
        self._toss.clock.advance(seconds)

    async def reconcile(self) -> None:
        async def work() -> None:
            await reconcile(self._resources)

        await self._do(work())

    # --- The user -----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        await self._do(self._beginning(productId="americano"))

    async def begin_order(self, number: int) -> None:
        if order := _one_of(list(self._orders.values()), number):
            await self._do(self._beginning(orderId=order))

    async def _beginning(self, **what: str) -> None:
        answer = await self.shop.begin(**what)
        if answer.status_code == 201:
            body = answer.json()
            assert body["state"] == "READY"
            assert body.get("orderId") not in self._canceled_orders
            self._begun[body["orderNo"]] = body
        else:
            assert answer.status_code in (409, 502, 503, 504), answer.text

    async def authenticate(self, number: int) -> None:
        if payment := _one_of(list(self._begun.values()), number):
            with suppress(NotPossible):
                self._toss.pay.authenticate(payment["payToken"])

    async def cancel_in_sheet(self, number: int) -> None:
        if payment := _one_of(list(self._begun.values()), number):
            with suppress(NotPossible):
                self._toss.pay.cancel(payment["payToken"])

    async def execute(self, number: int) -> None:
        if payment := _one_of(list(self._begun.values()), number):
            self._heard[payment["orderNo"]].is_execution_wanted = True
            await self._do(self._hearing(payment, self.shop.execute(payment)))

    async def buy(self, _number: int) -> None:
        begun = len(self._begun)
        await self.begin()
        if len(self._begun) > begun:
            await self.pay(-1)

    async def buy_order(self, number: int) -> None:
        begun = len(self._begun)
        await self.begin_order(number)
        await self.pay(-1 if len(self._begun) > begun else number)

    async def pay(self, number: int) -> None:
        """As the page does: authenticate, then execute."""
        await self.authenticate(number)
        await self.execute(number)

    async def look(self, number: int) -> None:
        if payment := _one_of(list(self._begun.values()), number):
            await self._do(self._hearing(payment, self.shop.look(payment)))

    async def _hearing(self, payment: dict[str, Any], call: Coroutine[Any, Any, Any]) -> dict[str, Any]:
        """What the answer says of the payment, which has to be true at this moment."""
        answer = await call
        body = answer.json()
        order_no = payment["orderNo"]
        state = ENDED if body.get("code") == "payment_ended" else body.get("state")
        state = ENDED if state in OVER else state
        if state is None:
            assert answer.status_code in (409, 502, 503, 504), answer.text
            return body
        self._heard[order_no].states.add(state)
        toss = next((each for each in self._toss.pay.payments() if each.order_no == order_no), None)
        counts = (toss.executions, toss.refunds) if toss else (0, 0)
        match state:
            case "PAID" | "REFUNDING":
                assert counts[0] == 1
            case "REFUNDED":
                assert counts == (1, 1)
            case "ENDED":
                assert counts == (0, 0)
        return body

    # --- The partner's server -----------------------------------------------------------------------------

    async def order(self, number: int) -> None:
        async def work() -> None:
            answer = await self.shop.order(f"order-{number}")
            assert answer.status_code == (200 if number in self._orders else 201)
            assert self._orders.setdefault(number, answer.json()["orderId"]) == answer.json()["orderId"]

        await self._do(work())

    async def cancel_order(self, number: int) -> None:
        async def work() -> None:
            answer = await self.shop.as_partner("DELETE", f"/orders/{order}")
            if answer.status_code == 204:
                self._canceled_orders.add(order)

        if order := _one_of(list(self._orders.values()), number):
            await self._do(work())

    async def refund(self, number: int) -> None:
        async def work(payment: dict[str, Any]) -> None:
            heard = self._heard[payment["orderNo"]]
            heard.is_refund_wanted = True
            body = await self._hearing(payment, self.shop.refund(payment))
            heard.is_refund_promised |= "state" in body

        if payment := _one_of(await self.shop.rows(), number):
            await self._do(work({"orderNo": payment.order_no}))

    async def recheck(self, number: int) -> None:
        if payment := _one_of(await self.shop.rows(), number):
            it = {"orderNo": payment.order_no}
            await self._do(self._hearing(it, self.shop.recheck(it)))

    async def charge(self, number: int) -> None:
        """A standing permission is charged, once for each number."""
        if self._key is None:
            self._key = await self.shop.active_key()

        async def work() -> None:
            answer = await self.shop.charge(self._key, f"charge-{number}")
            body = answer.json()
            if answer.status_code in (200, 202):
                await self._hearing(body, _already(answer))
                toss = self.shop.at_toss(body) if body["state"] == "PAID" else None
                assert toss is None or toss.amount == CHARGE["amount"]

        await self._do(work())

    # --- Toss ---------------------------------------------------------------------------------------------

    async def keep_in_progress(self) -> None:
        """From now on money stays on its way until it arrives or fails to."""
        self._toss.set_switches(stays_in_progress=True)

    async def let_through(self) -> None:
        self._toss.set_switches(stays_in_progress=False)

    async def arrive(self, number: int) -> None:
        self._finish(number, is_success=True)

    async def fail(self, number: int) -> None:
        self._finish(number, is_success=False)

    def _finish(self, number: int, *, is_success: bool) -> None:
        if payment := _one_of(self._toss.pay.payments(), number):
            with suppress(NotPossible):
                self._toss.pay.finish(payment.order_no, is_success=is_success)

    async def settle(self, number: int) -> None:
        if payment := _one_of(self._toss.pay.payments(), number):
            with suppress(NotPossible):
                self._toss.pay.settle(payment.order_no)

    async def refund_in_console(self, number: int) -> None:
        if payment := _one_of(self._toss.pay.payments(), number):
            with suppress(CallFailed):
                self._heard[payment.order_no].is_refunded_in_console = True
                self._toss.pay.refund(self._app, payment.user, pay_token=payment.pay_token, is_test=True)

    async def perform_late(self) -> None:
        """What a lost call has asked for happens now, if that is not too long ago."""
        for call in self._toss.calls():
            is_recent = self._toss.clock.now() < call.at + TOSS_LIFE
            if call.call in MOVING and _is_lost(call) and is_recent and not self._toss.held():
                with suppress(CallFailed):
                    await self._perform(call.call, call.subject or "")

    async def _perform(self, call: CallName, order_no: str) -> None:
        if call is CallName.BILLING_EXECUTE:
            (key,) = self._toss.billing.keys()
            charge = TossCharge(
                order_no=order_no, product_desc="x", amount=CHARGE["amount"], amount_tax_free=0, is_test=True
            )
            self._toss.billing.charge(self._app, key.user, key.wrapped_token, charge)
            return
        payment = self._toss.pay.payment(order_no)
        move = self._toss.pay.execute if call is CallName.PAY_EXECUTE else self._toss.pay.refund
        move(self._app, payment.user, pay_token=payment.pay_token, is_test=True)

    async def call_back(self, number: int) -> None:
        """Any notice that Toss ever had a reason for: new, again, late, or before an earlier one."""
        if notice := _one_of(self._toss.callbacks.waiting(), number):
            await self._do(self._calling_back(notice.body))

    async def forge(self, number: int, status: str) -> None:
        """Somebody who knows the secret tells stories."""
        if payment := _one_of(await self.shop.rows(), number):
            await self._do(self._calling_back({"orderNo": payment.order_no, "status": status, "amount": 1}))

    async def _calling_back(self, body: dict[str, Any]) -> None:
        answer = await self.shop.call_back(body)
        assert answer.status_code in (200, 503), answer.text

    # --- The end ------------------------------------------------------------------------------------------

    async def assert_settles(self) -> None:
        """Everybody lets go and time passes: nothing is open, and what was said and done fits together."""
        await self.release()
        self._toss._faults.orders.clear()
        self._toss.set_switches(stays_in_progress=False)
        self._is_reachable = True
        for payment in self._toss.pay.payments():
            if payment.status in (PayStatus.PROGRESS, PayStatus.REFUND_PROGRESS):
                self._toss.pay.finish(payment.order_no)
        await self._let_time_settle()
        payments = await self.shop.rows()
        assert self._has_lied or not [payment for payment in payments if payment.is_in("HELD")]
        for payment in payments:
            # Of a refund in its console Toss tells nobody, and of what is held a person asks again.
            if self._heard[payment.order_no].is_refunded_in_console or payment.is_in("HELD"):
                assert (await self.shop.recheck({"orderNo": payment.order_no})).status_code == 200
        await self._let_time_settle()
        await self.shop.assert_books_agree()
        await self._assert_no_promise_was_broken()

    async def _let_time_settle(self) -> None:
        for _ in range(8):
            await self.wait(3601)
            await self.reconcile()
            if not any(payment.is_in(*OPEN) for payment in await self.shop.rows()):
                break

    async def _assert_no_promise_was_broken(self) -> None:
        told = await self.shop.told()
        theirs = {payment.order_no: payment for payment in self._toss.pay.payments()}
        for own in await self.shop.rows():
            heard, toss, events = self._heard[own.order_no], theirs.get(own.order_no), told[own.order_no]
            executions, refunds = (toss.executions, toss.refunds) if toss else (0, 0)
            assert not (executions and ENDED in heard.states)
            assert not executions or heard.is_execution_wanted or own.billing_key_id
            assert not refunds or heard.is_refund_wanted or heard.is_refunded_in_console
            assert not (own.order_id in self._canceled_orders and executions)
            is_refused = "payment.refund_refused" in events
            assert not is_refused or heard.is_refund_wanted
            if heard.is_refund_promised:
                assert refunds or is_refused
            self._assert_nothing_was_sent_too_soon(own.order_no)
        async with self._resources.database.transaction() as session:
            assert not (await session.scalars(Notice.__table__.select().where(Notice.state == "OPEN"))).all()

    def _assert_nothing_was_sent_too_soon(self, order_no: str) -> None:
        """Again only once what was lost cannot happen any more, and never two at once (G4)."""
        for name in MOVING:
            assert self._toss.max_in_flight(name, order_no) <= 1
            for lost, again in pairwise(self._toss.calls(name, order_no)):
                assert not _is_lost(lost) or again.at >= lost.at + TOSS_LIFE


def _is_lost(call: CallRecord) -> bool:
    """No effect yet, and nobody who hears of it."""
    return call.answer is None and call.fault in (FaultKind.RESET_BEFORE, FaultKind.HOLD_BEFORE)


def _one_of(found: Sequence[Any], number: int) -> Any:
    return found[number % len(found)] if found else None


async def _already(answer: Any) -> Any:
    return answer


# Mostly the latest: a story goes on more often than an old one is taken up again.
WHICH = st.sampled_from([-1, -1, -1, 0, 1, 2])
TROUBLED = st.sampled_from(
    [
        *[("pay_execute", "buy"), ("pay_execute", "buy_order")] * 2,
        *[("pay_refund", "refund")] * 3,
        *[("billing_execute", "charge")] * 2,
        *[("pay_make", "begin_order"), ("pay_make", "buy"), ("pay_status", "recheck"), ("pay_status", "call_back")],
    ]
)
"""A call, and who makes it."""
LOSSES = st.sampled_from(
    [
        ("reset_before", {}),
        ("reset_after", {}),
        ("html_502", {}),
        ("html_502", {"after_effect": True}),
        ("truncated_json", {}),
        ("missing_field", {}),
        ("fail_200", {}),
        ("fail_200", {"after_effect": True}),
        ("fail_200", {"after_effect": True, "result_type": "HTTP_TIMEOUT"}),
        ("hold", {}),
        ("hold_before", {}),
    ]
)
RIDDLES = st.sampled_from([("missing_field", {"field": "payStatus"}), ("wrong_value", {"field": "payStatus"})])
NOES = st.sampled_from(
    [
        ("pay_make", "COMMON_EXCEED_LIMIT", "buy"),
        ("pay_execute", "COMMON_NOT_ENOUGH_CASH", "buy"),
        ("billing_execute", "COMMON_NOT_ENOUGH_CASH", "charge"),
        ("pay_refund", "REFUND_EXCEED_DAILY", "refund"),
    ]
)
LIES = st.sampled_from(
    [
        [("fault", call, "wrong_value", {"field": field}), (who, -1)]
        for call, who in (("pay_execute", "buy"), ("pay_status", "recheck"), ("billing_execute", "charge"))
        for field in ("amount", "orderNo", "payToken", "mode")
        # Where we hear of it for the first time, or when the answer that would have named it was lost.
        if field != "payToken" or call == "pay_execute"
    ]
)
DEATHS = st.sampled_from(
    [
        ("payment_created", "begin_order"),
        ("payment_made", "begin_order"),
        ("payment_executing", "buy"),
        ("payment_executed", "buy"),
        ("refund_claimed", "refund"),
        ("refund_answered", "refund"),
        ("charge_executing", "charge"),
        ("charge_executed", "charge"),
        ("notice_recorded", "call_back"),
        ("notice_handled", "call_back"),
    ]
)
"""A checkpoint, and who comes by."""
USER = st.sampled_from([*["buy"] * 4, *["buy_order", "pay"] * 2, "begin_order", "execute", "authenticate", "look"])
PARTNER = st.sampled_from([*["refund"] * 3, *["order", "charge", "cancel_order"] * 2, "recheck"])
TOSS = st.sampled_from(["settle", "refund_in_console", *["call_back"] * 3, "cancel_in_sheet"])
FORGED = st.sampled_from(["PAY_COMPLETE", "PAY_CANCEL", "REFUND_SUCCESS"])
WAITS = st.sampled_from([6, 15, 30, 61, 600, 901, 90_000])


def weighted(*strategies: Any) -> Any:
    """Each as often as it is named; `one_of` would count their branches."""
    return st.sampled_from(strategies).flatmap(lambda chosen: chosen)


def alone(*parts: Any) -> Any:
    return st.tuples(*parts).map(lambda action: [action])


ACTION = weighted(
    *[alone(USER, WHICH)] * 3,
    *[alone(PARTNER, WHICH)] * 2,
    alone(TOSS, WHICH),
    alone(st.just("forge"), WHICH, FORGED),
)
SLOW = st.tuples(TROUBLED, st.sampled_from(["hold", "hold_before"]), WHICH, ACTION).map(
    lambda it: [("fault", it[0][0], it[1], {}), (it[0][1], it[2]), *it[3], ("release",)]
)
LOST = st.tuples(TROUBLED, LOSSES, WHICH).map(lambda it: [("fault", it[0][0], *it[1]), (it[0][1], it[2])])
REFUSED = st.tuples(NOES, WHICH).map(
    lambda it: [("fault", it[0][0], "fail_200", {"code": it[0][1]}), (it[0][2], it[1])]
)
NO_STATUS = LOSSES.map(lambda it: [("fault", "pay_status", *it)]) | RIDDLES.map(
    lambda it: [("fault", "pay_status", *it)]
)
STOPPED = st.tuples(DEATHS, WHICH).map(lambda it: [("stop_at", it[0][0]), (it[0][1], it[1])])
ODD = weighted(
    st.just([("unreachable",)]),
    st.sampled_from([[("keep_in_progress",)], [("let_through",)]]),
    alone(st.sampled_from(["arrive", "fail"]), WHICH),
    st.just([("perform_late",)]),
)
PROCESS = st.sampled_from([[("crash",)], [("crash",)], [("release",)]])
TIME = weighted(st.just([("reconcile",)]), alone(st.just("wait"), WAITS))
TRUE = weighted(
    *[ACTION] * 4,
    *[LOST] * 3,
    *[NO_STATUS, STOPPED, SLOW, PROCESS, TIME] * 2,
    REFUSED,
    ODD,
)
WITH_LIES = weighted(*[TRUE] * 4, LIES)
SHORTEST, LONGEST = 6, 24


def ample(settings: Settings) -> Settings:
    """As much of Toss's budget as anybody wants, and nothing that settles by itself."""
    server = settings.server.model_copy(update={"reconcile_every": timedelta(0)})
    return settings.model_copy(update={"budget": BudgetSettings(per_minute=10**9), "server": server})


@pytest.fixture
async def world(backend, sandbox) -> AsyncIterator[World]:
    made = World(ample(settings_for(backend, sandbox)), sandbox)
    await made.start()
    yield made
    await made.stop()


async def play(world: World, story: list[list[tuple[Any, ...]]]) -> None:
    await world.begin_anew()
    await world.order(0)
    for name, *arguments in chain.from_iterable(story):
        await getattr(world, name)(*arguments)
    await world.assert_settles()


def stories(parts: Any, *, count: int) -> Any:
    """That many of them, the same ones in every run."""

    def decorated(test: Any) -> Any:
        chosen = examples(
            max_examples=count,
            deadline=None,
            derandomize=True,
            # The world is begun anew for each example, but for the servers.
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        return chosen(given(story=st.lists(parts, min_size=SHORTEST, max_size=LONGEST))(test))

    return decorated


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
@stories(TRUE, count=50)
async def test_whatever_happens_the_books_agree(world, story):
    await play(world, story)


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
@stories(WITH_LIES, count=20)
async def test_whatever_toss_says_what_is_not_so_is_held_until_a_person_asks_again(world, story):
    await play(world, story)


@pytest.mark.parametrize("backend", ["production"], indirect=True)
@stories(WITH_LIES, count=12)
async def test_with_postgresql_and_redis_too(world, story):
    await play(world, story)
