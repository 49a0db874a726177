"""What Toss remembers, and its rules. No web in here; safe to use from any thread."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from sandbox.billing import Billing
from sandbox.budget import Budget
from sandbox.callbacks import CallbackKind, Callbacks, Delivery
from sandbox.clock import Clock, korean_time, pay_time
from sandbox.crypto import Session
from sandbox.faults import CallName, FaultKind, FaultOrder, FaultQueue, Hold
from sandbox.miniapps import DEFAULT_APP, MiniApps, UnlinkReferrer
from sandbox.payments import Payment, Payments
from sandbox.personas import Persona, personas
from sandbox.purchases import Purchases
from sandbox.shared import NotPossible, changing
from sandbox.switches import Situation, Switches

# The credentials of the test environment, published by Toss (reference 2).
TEST_CLIENT_ID = "test_a8e23336d673ca70922b485fe806eb2d"
TEST_CLIENT_SECRET = "test_418087247d66da09fda1964dc4734e453c7cf66a7a9e3"  # noqa: S105

_SUCCESSFUL_READS = 2
_RESULT_WINDOW = timedelta(minutes=60)
_YEAR = 31_536_000
_HOUR = 3_600


class Status(StrEnum):
    REQUESTED = "REQUESTED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    EXPIRED = "EXPIRED"


class Refused(Exception):
    """Toss says FAIL. `note` is for the call log: it says why, without personal data."""

    def __init__(self, situation: Situation, note: str) -> None:
        super().__init__(note)
        self.situation = situation
        self.note = note


@dataclass(frozen=True)
class Client:
    id: str
    secret: str = field(repr=False)

    @property
    def is_test(self) -> bool:
        return self.id.startswith("test_")  # reference 2


@dataclass(frozen=True)
class Token:
    client_id: str
    expires_at: datetime


@dataclass(frozen=True, repr=False)
class SentPerson:
    """What the client sent, encrypted, about the person it wants verified."""

    name: str
    phone: str
    birthday: str


@dataclass(kw_only=True)
class Transaction:
    tx_id: str
    client_id: str
    request_type: str
    requested_at: datetime
    expires_at: datetime
    opened: bool = False
    completed_at: datetime | None = None
    persona: Persona | None = field(default=None, repr=False)
    sent_person: SentPerson | None = field(default=None, repr=False)
    reads: int = 0
    """Successful result calls so far."""

    def status(self, now: datetime) -> Status:
        if self.completed_at is not None:
            return Status.COMPLETED
        if now >= self.expires_at:
            return Status.EXPIRED
        return Status.IN_PROGRESS if self.opened else Status.REQUESTED


@dataclass(kw_only=True)
class CallRecord:
    """One call that arrived. Holds no body and no header."""

    call: CallName
    subject: str | None
    """What it is about: a txId, an orderNo, an orderId, the number of a billing key."""
    at: datetime
    answer: str | None = None
    """SUCCESS or an error code; None while nothing has taken effect."""
    note: str = ""
    """Why it was refused."""
    fault: FaultKind | None = None
    app_name: str | None = None
    """Of the client certificate, at the partner API."""
    user_key: int | None = None


class SandboxState:
    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.personas = personas()
        self._changed = threading.Condition(threading.RLock())
        self._clear()
        shared = self.clock, self._changed
        self.mini_apps = MiniApps(*shared, lambda: self.switches)
        self.budget = Budget(*shared)
        self.callbacks = Callbacks(*shared)
        self.pay = Payments(*shared, lambda: self.switches, self._tell_of_payment)
        self.billing = Billing(*shared, lambda: self.switches, self.pay)
        self.iap = Purchases(*shared, lambda: self.switches, self.mini_apps, self.callbacks)

    def _clear(self) -> None:
        self._switches = Switches()
        self._clients = {TEST_CLIENT_ID: Client(TEST_CLIENT_ID, TEST_CLIENT_SECRET)}
        self._tokens: dict[str, Token] = {}
        self._transactions: dict[str, Transaction] = {}
        self._used_sessions: set[bytes | str] = set()
        self._faults = FaultQueue()
        self._holds: list[Hold] = []
        self._log: list[CallRecord] = []
        self._in_flight: Counter[tuple[CallName, str | None]] = Counter()
        self._max_in_flight: Counter[tuple[CallName, str | None]] = Counter()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with changing(self._changed):
            yield

    def reset(self) -> None:
        """As new: no transactions, tokens, faults or log, default switches, real time. Held calls go on."""
        self.release()
        self.clock.reset()
        with self._change():
            self._clear()
            self.mini_apps.clear()
            self.budget.clear()
            self.callbacks.clear()
            self.pay.clear()
            self.billing.clear()
            self.iap.clear()

    def wait_until(self, condition: Callable[["SandboxState"], bool], timeout: float = 10.0) -> None:
        """Block until `condition` holds; it is asked again after every change. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError("the sandbox did not reach the awaited state")

    # Switches

    @property
    def switches(self) -> Switches:
        with self._changed:
            return self._switches

    def set_switches(self, **changes: object) -> Switches:
        """By Python names or wire names. Raises pydantic's ValidationError."""
        with self._change():
            names = {info.alias: name for name, info in Switches.model_fields.items()}
            known = {names.get(name, name): value for name, value in changes.items()}
            self._switches = Switches.model_validate(self._switches.model_dump() | known)
            return self._switches

    # Clients and tokens

    def add_client(self, client_id: str, client_secret: str) -> None:
        with self._change():
            self._clients[client_id] = Client(client_id, client_secret)

    def client(self, client_id: str, client_secret: str) -> Client | None:
        with self._changed:
            client = self._clients.get(client_id)
        return client if client is not None and client.secret == client_secret else None

    def token_lifetime(self, client: Client) -> int:
        """A year for test credentials (DOC); an hour otherwise, as integrators saw it (reference 2)."""
        chosen = self.switches.token_expires_in
        if chosen is not None:
            return chosen
        return _YEAR if client.is_test else _HOUR

    def remember_token(self, text: str, token: Token) -> None:
        with self._change():
            self._tokens[text] = token

    def client_id_of(self, token_text: str) -> str:
        """Raises `Refused`."""
        with self._changed:
            token = self._tokens.get(token_text)
        if token is None:
            raise Refused(Situation.BAD_TOKEN, "this token is not known, or was revoked")
        if self.clock.now() >= token.expires_at:
            raise Refused(Situation.BAD_TOKEN, "this token has expired")
        return token.client_id

    def revoke_tokens(self) -> None:
        with self._change():
            self._tokens.clear()

    # What the client does

    def start(
        self,
        client_id: str,
        request_type: str,
        *,
        life_seconds: int | None = None,
        session: Session | None = None,
        sent_person: SentPerson | None = None,
    ) -> Transaction:
        """Raises `Refused`."""
        with self._change():
            if session is not None:
                self._use(session)
            now = self.clock.now()
            life = life_seconds if life_seconds is not None else self._switches.request_life_seconds
            transaction = Transaction(
                tx_id=str(uuid.uuid4()),
                client_id=client_id,
                request_type=request_type,
                requested_at=now,
                expires_at=now + timedelta(seconds=life),
                sent_person=sent_person,
            )
            self._transactions[transaction.tx_id] = transaction
            return replace(transaction)

    def look_up(self, client_id: str, tx_id: str) -> Transaction:
        """Raises `Refused`."""
        with self._changed:
            transaction = self._transactions.get(tx_id)
            # That another partner's transaction does not exist for this one is inferred.
            if transaction is None or transaction.client_id != client_id:
                raise Refused(Situation.UNKNOWN_TX, "this client has no such transaction")
            return replace(transaction)

    def read_result(self, client_id: str, tx_id: str, session: Session) -> tuple[Transaction, Persona]:
        """One successful read, counted here: an answer lost on the way has been spent (reference 8).

        Raises `Refused`.
        """
        with self._change():
            self._use(session)
            found = self.look_up(client_id, tx_id)
            now = self.clock.now()
            if found.status(now) is Status.EXPIRED:
                raise Refused(Situation.EXPIRED, "the request's life is over")
            if found.completed_at is None or found.persona is None:
                raise Refused(Situation.NOT_COMPLETED, "the user has not finished")
            if now - found.completed_at > _RESULT_WINDOW:
                raise Refused(Situation.TOO_LATE, "60 minutes have passed since the user finished")
            if found.reads >= _SUCCESSFUL_READS:
                raise Refused(Situation.READS_USED_UP, "two results have been handed out already")
            self._transactions[tx_id].reads += 1
            return replace(self._transactions[tx_id]), found.persona

    def _use(self, session: Session) -> None:
        # "Freshly made for every call" (reference 3.3, 3.6); that Toss checks it is inferred (Q7).
        marks: set[bytes | str] = {session.id, session.key + session.iv}
        if self._switches.session_reuse_refused and marks & self._used_sessions:
            raise Refused(Situation.SESSION_REUSED, "this session was used in an earlier call")
        self._used_sessions |= marks

    # What the user does in the Toss app

    def transaction(self, tx_id: str) -> Transaction:
        """A copy. Raises `NotPossible` when it is not known."""
        return replace(self._known(tx_id))

    def open(self, tx_id: str) -> None:
        with self._change():
            transaction = self._pending(tx_id)
            transaction.opened = True

    def approve(self, tx_id: str, persona: str | None = None) -> None:
        """Without a persona named, `test_` credentials get the documented test person (reference 2)."""
        with self._change():
            transaction = self._pending(tx_id)
            default = "test_person" if self._clients[transaction.client_id].is_test else "man"
            key = persona or default
            if key not in self.personas:
                raise NotPossible(f"there is no persona {key!r}")
            transaction.opened = True
            transaction.completed_at = self.clock.now()
            transaction.persona = self.personas[key]

    def unlink_by_user(
        self,
        user: str,
        *,
        app_name: str = DEFAULT_APP,
        referrer: UnlinkReferrer | str = UnlinkReferrer.UNLINK,
    ) -> list[Delivery]:
        """In the Toss app; the mini-app's callback, if one is set up, is told. Raises `NotPossible`."""
        user_key = self.mini_apps.disconnect(user, app_name=app_name, referrer=referrer)
        _, made = self.callbacks.announce(user_key, UnlinkReferrer(referrer), app_name=app_name)
        return made

    def _tell_of_payment(self, payment: Payment) -> None:
        """As plain Toss Pay does, where a URL is set up: Apps in Toss documents no such callback (14.4)."""
        kind = CallbackKind.PAYMENT
        settings = self.callbacks.settings(payment.app, kind=kind)
        if settings.url is None or payment.paid_at is None:
            return
        body = {
            "status": payment.status.value,
            "payToken": payment.pay_token,
            "orderNo": payment.order_no,
            "payMethod": payment.charge.method.value,
            "amount": payment.amount,
            "discountedAmount": payment.discount,
            "paidAmount": payment.paid_amount,
            "paidTs": pay_time(payment.paid_at),
            "transactionId": payment.pay_transaction,
        }
        self.callbacks.send_later(kind, body, app_name=payment.app)

    def expire(self, tx_id: str) -> None:
        with self._change():
            self._pending(tx_id).expires_at = self.clock.now()

    def _known(self, tx_id: str) -> Transaction:
        with self._changed:
            if tx_id not in self._transactions:
                raise NotPossible("there is no such transaction")
            return self._transactions[tx_id]

    def _pending(self, tx_id: str) -> Transaction:
        transaction = self._known(tx_id)
        status = transaction.status(self.clock.now())
        if status in (Status.COMPLETED, Status.EXPIRED):
            raise NotPossible(f"this transaction is {status} already")
        return transaction

    # Faults

    def order_fault(self, call: CallName | str, kind: FaultKind | str, **details: object) -> None:
        """See `FaultOrder` for the details. Raises pydantic's ValidationError."""
        order = FaultOrder.model_validate({"call": call, "kind": kind, **details})
        with self._change():
            self._faults.add(order)

    def pending_faults(self) -> list[FaultOrder]:
        with self._changed:
            return [order.model_copy() for order in self._faults.orders]

    def fault_before(self, record: CallRecord) -> FaultOrder | None:
        with self._change():
            order = self._faults.take_before(record.call, record.subject)
            return self._note_fault(record, order)

    def fault_after(self, record: CallRecord, *, success: bool) -> FaultOrder | None:
        with self._change():
            order = self._faults.take_after(record.call, record.subject, success=success)
            return self._note_fault(record, order)

    def _note_fault(self, record: CallRecord, order: FaultOrder | None) -> FaultOrder | None:
        if order is not None:
            record.fault = order.kind
        return order

    def hold(self, call: CallName, subject: str | None) -> Hold:
        with self._change():
            held = Hold(call, subject)
            self._holds.append(held)
            return held

    def let_go(self, held: Hold) -> None:
        """The held call goes on, or its connection is gone."""
        with self._change():
            if held in self._holds:
                self._holds.remove(held)

    def held(self, call: CallName | str | None = None) -> int:
        """How many calls are being held now."""
        with self._changed:
            return sum(1 for held in self._holds if call in (None, held.call))

    def release(self, call: CallName | str | None = None) -> int:
        """Let held calls go on; how many."""
        with self._changed:
            chosen = [held for held in self._holds if call in (None, held.call)]
        for held in chosen:
            held.release()
        return len(chosen)

    # What was called

    @contextmanager
    def record(self, call: CallName, subject: str | None, app_name: str | None = None) -> Iterator[CallRecord]:
        record = CallRecord(call=call, subject=subject, at=self.clock.now(), app_name=app_name)
        keys = {(call, subject), (call, None)}
        with self._change():
            self._log.append(record)
            counts, highest = self._in_flight, self._max_in_flight
            for key in keys:
                counts[key] += 1
                highest[key] = max(highest[key], counts[key])
        try:
            yield record
        finally:
            with self._change():
                for key in keys:
                    counts[key] -= 1

    def settle(
        self, record: CallRecord, *, answer: str, note: str, subject: str | None = None, user_key: int | None = None
    ) -> None:
        """What came of a call; `subject` is the one it made."""
        with self._change():
            record.answer, record.note, record.user_key = answer, note, user_key
            record.subject = record.subject or subject

    def calls(self, call: CallName | str | None = None, subject: str | None = None) -> list[CallRecord]:
        """Copies, oldest first."""
        with self._changed:
            return [
                replace(record)
                for record in self._log
                if call in (None, record.call) and subject in (None, record.subject)
            ]

    def count(self, call: CallName | str | None = None, subject: str | None = None) -> int:
        """How many calls arrived, refused ones included."""
        return len(self.calls(call, subject))

    def in_flight(self, call: CallName | str, subject: str | None = None) -> int:
        with self._changed:
            return self._in_flight[CallName(call), subject]

    def max_in_flight(self, call: CallName | str, subject: str | None = None) -> int:
        """The most that were ever under way at once: for one subject, or over all."""
        with self._changed:
            return self._max_in_flight[CallName(call), subject]

    def transactions(self) -> list[Transaction]:
        """Copies, oldest first."""
        with self._changed:
            return [replace(transaction) for transaction in self._transactions.values()]

    def snapshot(self) -> dict[str, object]:
        """For the control API: everything but people, tokens and secrets."""
        with self._changed:
            now = self.clock.now()
            return {
                "now": korean_time(now),
                "switches": self._switches.model_dump(mode="json", by_alias=True),
                "counts": {call.value: self.count(call) for call in CallName},
                "maxInFlight": {call.value: self._max_in_flight[call, None] for call in CallName},
                "held": [{"call": held.call.value, "subject": held.subject} for held in self._holds],
                "faults": [order.model_dump(mode="json", by_alias=True) for order in self._faults.orders],
                "transactions": [
                    {
                        "txId": transaction.tx_id,
                        "requestType": transaction.request_type,
                        "status": transaction.status(now).value,
                        "requestedAt": korean_time(transaction.requested_at),
                        "expiresAt": korean_time(transaction.expires_at),
                        "completedAt": transaction.completed_at and korean_time(transaction.completed_at),
                        "persona": transaction.persona and transaction.persona.key,
                        "reads": transaction.reads,
                        "resultCalls": self.count(CallName.RESULT, transaction.tx_id),
                        "maxResultCallsInFlight": self._max_in_flight[CallName.RESULT, transaction.tx_id],
                    }
                    for transaction in self._transactions.values()
                ],
                "calls": [
                    {
                        "call": record.call.value,
                        "subject": record.subject,
                        "appName": record.app_name,
                        "userKey": record.user_key,
                        "at": korean_time(record.at),
                        "answer": record.answer,
                        "note": record.note,
                        "fault": record.fault and record.fault.value,
                    }
                    for record in self._log[-200:]
                ],
                "miniApps": self.mini_apps.snapshot(),
                "budget": self.budget.snapshot(),
                "payments": self.pay.snapshot(),
                "billingKeys": self.billing.snapshot(),
                "iapOrders": self.iap.snapshot(),
            }
