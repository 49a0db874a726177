"""The inbox: what Toss calls about is recorded once, then handed over until it is done (G9)."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import delete, func, select, update
from typing_extensions import override

from app.callbacks.tables import (
    ERASED,
    MAX_OUTCOME,
    NOTHING_TO_DO,
    CallbackName,
    Notice,
    NoticeState,
    close,
    forget,
    place_of_content,
    postpone,
    record,
)
from app.database import Database, Page, time_ordered_id
from app.errors import (
    AppError,
    InternalError,
    NoticeNotFound,
    NoticeNotReplayable,
    SealedDataUnreadable,
    StorageUnavailable,
)
from app.vault import UnsealError, Vault

BATCH = 200
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to record a notice while the database is away."""
CONSOLE_TEST = "CONSOLE_TEST"
"""Outcome of the console's test, which names no user (apps-in-toss reference 14.1)."""
REGISTRATION = "REGISTRATION"
"""Outcome of the check of a new address, which needs nothing but an answer (apps-in-toss reference 14.2)."""
MAX_HANDLING, MAX_WRITING = 100, 1000
"""Of one process at once. A notice beyond the first is left to reconcile, one beyond the second is turned away."""

Content = Mapping[str, Any]
Clock = Callable[[], datetime]
Checkpoint = Callable[[str], Awaitable[None]]
Handler = Callable[[Content], Awaitable[str]]
"""Does what a notice's content asks for, any number of times with the same effect; answers with one word for what
became of it. Raises: AppError when that cannot be decided now; the notice then stays open."""
Count = Callable[[str, str], None]
"""Counts a happening (recorded, merged, handled, failed) of a callback; for metrics."""


def unlinking(unlink: Callable[[int, str], Awaitable[str]]) -> Handler:
    """The handler of login-unlink: `unlink` gets the user_key and Toss's referrer, as it came or empty."""

    async def handle(content: Content) -> str:
        return await unlink(content["userKey"], content["referrer"])

    return handle


@dataclass(frozen=True)
class Arrival:
    """An authentic callback as it was read."""

    callback: CallbackName
    content: dict[str, Any]
    state: NoticeState = NoticeState.OPEN
    outcome: str | None = None
    user_key: int | None = None

    @override
    def __repr__(self) -> str:
        return f"Arrival({self.callback}, {self.state})"


@dataclass(frozen=True)
class Reconciled:
    handled: int
    left_open: int
    erased: int


class Inbox:
    def __init__(
        self,
        *,
        database: Database,
        vault: Vault,
        clock: Clock,
        handlers: Mapping[CallbackName, Handler],
        checkpoint: Checkpoint,
        retention: timedelta,
        count: Count = lambda _what, _callback: None,
        answer_within: timedelta = timedelta(seconds=1),
        write_patience: timedelta = timedelta(seconds=6),
        closing_patience: timedelta = timedelta(seconds=6),
    ) -> None:
        """`handlers` is looked at when a notice is handled, so it may be filled later.

        `answer_within`: how long Toss waits for a handler before it gets its answer all the same.
        `write_patience`: how long it waits for the database; the write then goes on alone.
        """
        self._database = database
        self._vault = vault
        self._clock = clock
        self._handlers = handlers
        self._checkpoint = checkpoint
        self._retention = retention
        self._count = count
        self._answer_within = answer_within
        self._write_patience = write_patience
        self._closing_patience = closing_patience
        self._writing: set[asyncio.Task[Notice]] = set()
        self._handling: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.stdlib.get_logger("app.callbacks")

    # --- Toss calls ---------------------------------------------------------------------------------------

    async def receive(self, arrival: Arrival) -> None:
        """Record it, then let it be handled. When this returns, the notice is committed; nothing else is promised.

        Whether Toss calls again after an error is not known (apps-in-toss reference 14.0), so while the database is
        away the notice is kept in hand until it can be written.

        Raises: StorageUnavailable when Toss has waited long enough for that, or too many are waiting already.
        """
        if len(self._writing) >= MAX_WRITING:
            raise StorageUnavailable
        writing = asyncio.create_task(self._until_recorded(arrival))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        try:
            async with asyncio.timeout(self._write_patience.total_seconds()):
                recorded = await asyncio.shield(writing)
        except TimeoutError:
            raise StorageUnavailable from None
        handling = self._handling.get(recorded.notice_id)
        if handling is not None:
            await asyncio.wait({handling}, timeout=self._answer_within.total_seconds())

    async def _until_recorded(self, arrival: Arrival) -> Notice:
        received_at, pause = self._clock(), FIRST_PAUSE
        while True:
            try:
                recorded = await self.record(arrival, received_at=received_at)
                break
            except StorageUnavailable:
                self._log.warning("notice_delayed", callback=arrival.callback)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        await self._checkpoint("notice_recorded")
        if recorded.state == NoticeState.OPEN:
            self._start(recorded.notice_id)
        return recorded

    async def record(self, arrival: Arrival, *, received_at: datetime) -> Notice:
        """Commit the notice, or one more delivery of an equal one that is still open. Handles nothing.

        Raises: StorageUnavailable.
        """
        notice_id = time_ordered_id(received_at)
        content = json.dumps(arrival.content, sort_keys=True)
        content_hash = self._vault.hash("notice_content", f"{arrival.callback}\x1f{content}")
        is_open = arrival.state is NoticeState.OPEN
        values = {
            "notice_id": notice_id,
            "callback": arrival.callback,
            "state": arrival.state,
            "outcome": arrival.outcome,
            "content": self._vault.seal(content, place_of_content(notice_id)),
            "subject_hash": self._subject_hash(arrival.user_key) if arrival.user_key is not None else None,
            "content_hash": content_hash,
            "open_key": f"{arrival.callback}:{content_hash}" if is_open else None,
            "received_at": received_at,
            "last_received_at": received_at,
            "deliveries": 1,
            "attempts": 0,
            "next_attempt_at": received_at if is_open else None,
            "handled_at": received_at if arrival.state is NoticeState.HANDLED else None,
        }
        async with self._database.transaction() as session:
            recorded = await record(session, values, is_sqlite=self._database.is_sqlite)
        self._count("recorded" if recorded.notice_id == notice_id else "merged", recorded.callback)
        self._log.info(
            "notice_recorded",
            notice_id=recorded.notice_id,
            callback=recorded.callback,
            state=recorded.state,
            deliveries=recorded.deliveries,
        )
        return recorded

    # --- Handling -----------------------------------------------------------------------------------------

    def _start(self, notice_id: str) -> None:
        """Equal deliveries at once share one task here; what other replicas do is decided by `close`."""
        if notice_id not in self._handling and len(self._handling) < MAX_HANDLING:
            self._handling[notice_id] = asyncio.create_task(self._handle_here(notice_id))

    async def _handle_here(self, notice_id: str) -> None:
        try:
            await self._settle(notice_id)
        finally:
            del self._handling[notice_id]

    async def _settle(self, notice_id: str) -> bool:
        """Handle a notice; False if it stays open. A handler's text is not logged: it may show whom it is about."""
        try:
            notice = await self._handle(notice_id)
        except AppError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            level = max(error.level, logging.WARNING)
            self._log.log(level, "notice_left_open", notice_id=notice_id, code=error.code, cause=cause)
            return False
        except Exception as error:  # noqa: BLE001 - one notice must not keep the others
            self._log.error("notice_left_open", notice_id=notice_id, cause=type(error).__name__)
            return False
        return notice.state != NoticeState.OPEN

    async def _handle(self, notice_id: str) -> Notice:
        """Hand an open notice over until no further delivery has come meanwhile, and close it.

        Raises: what the handler raises, StorageUnavailable; the notice is then still open.
        """
        outcome = NOTHING_TO_DO
        while True:
            notice = await self._get(notice_id)
            handler = self._handler_of(notice)
            if notice.state != NoticeState.OPEN or handler is None:
                return notice
            latest = await self._hand_over(notice, handler)
            outcome = latest if latest != NOTHING_TO_DO else outcome
            await self._checkpoint("notice_handled")
            async with self._database.transaction() as session:
                closed = await close(session, notice, outcome=outcome, now=self._clock())
                if closed is not None and outcome == ERASED:
                    await forget(session, closed)
            if closed is not None:
                self._note_handled(closed)
                return closed

    async def _hand_over(self, notice: Notice, handler: Handler) -> str:
        try:
            return (await handler(self._content(notice)))[:MAX_OUTCOME]
        except AppError:
            await self._postpone(notice)
            raise
        except Exception as error:
            await self._postpone(notice)
            raise InternalError from error

    async def _postpone(self, notice: Notice) -> None:
        self._count("failed", notice.callback)
        async with self._database.transaction() as session:
            await postpone(session, notice, now=self._clock())

    def _note_handled(self, notice: Notice) -> None:
        self._count("handled", notice.callback)
        self._log.info(
            "notice_handled", notice_id=notice.notice_id, callback=notice.callback, outcome=notice.outcome
        )

    def _handler_of(self, notice: Notice) -> Handler | None:
        return next((handler for name, handler in self._handlers.items() if name == notice.callback), None)

    async def aclose(self) -> None:
        """Give what is under way a last moment. A notice whose handling is cancelled stays open."""
        try:
            async with asyncio.timeout(self._closing_patience.total_seconds()):
                while tasks := self._tasks():
                    await asyncio.wait(tasks)
        except TimeoutError:
            late = self._tasks()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _tasks(self) -> set[asyncio.Task[Any]]:
        return {*self._writing, *self._handling.values()}

    # --- What a crash, a failure or time leaves to do ------------------------------------------------------

    async def reconcile(self) -> Reconciled:
        """Handle every open notice that is due, oldest first, and erase what is past its retention.

        Raises: StorageUnavailable.
        """
        now = self._clock()
        handled, left_open, last = 0, 0, ""
        while batch := await self._due(now, after=last):
            for last in batch:
                is_handled = await self._settle(last)
                handled += is_handled
                left_open += not is_handled
        return Reconciled(handled, left_open, await self._erase(now - self._retention))

    async def _due(self, now: datetime, *, after: str) -> Sequence[str]:
        async with self._database.transaction() as session:
            due = await session.scalars(
                select(Notice.notice_id)
                .where(
                    Notice.state == NoticeState.OPEN,
                    Notice.callback.in_(list(self._handlers)),
                    Notice.next_attempt_at <= now,
                    Notice.notice_id > after,
                )
                .order_by(Notice.notice_id)
                .limit(BATCH)
            )
            return due.all()

    async def _erase(self, before: datetime) -> int:
        async with self._database.transaction() as session:
            erased = await session.scalars(
                delete(Notice)
                .where(
                    Notice.state != NoticeState.OPEN,
                    func.coalesce(Notice.handled_at, Notice.last_received_at) < before,
                )
                .returning(Notice.notice_id)
            )
            count = len(erased.all())
        if count:
            await self._database.forget()
        return count

    async def recheck(self, user_key: int, *, since: datetime) -> None:
        """Handle again what was said of this user from `since` on, whether or not it has been handled.

        Closes a race: a notice that was handled just before a login was committed found nothing to end. Each
        referrer is handed over once, in the order in which they came, because they ask for different things.

        What cannot be decided now becomes a notice again, for `reconcile`.

        Raises: StorageUnavailable.
        """
        handler = self._handlers.get(CallbackName.LOGIN_UNLINK)
        if handler is None:
            return
        async with self._database.transaction() as session:
            notices = await session.scalars(
                select(Notice)
                .where(
                    Notice.callback == CallbackName.LOGIN_UNLINK,
                    Notice.subject_hash == self._subject_hash(user_key),
                    Notice.last_received_at >= since,
                )
                .order_by(Notice.last_received_at, Notice.notice_id)
            )
            found = notices.all()
        for referrer in dict.fromkeys(self._referrer(notice) for notice in found):
            content = {"userKey": user_key, "referrer": referrer}
            try:
                await handler(content)
            except AppError as error:
                self._log.warning("recheck_postponed", code=error.code)
                again = Arrival(CallbackName.LOGIN_UNLINK, content, user_key=user_key)
                await self.record(again, received_at=self._clock())

    def _referrer(self, notice: Notice) -> str:
        try:
            return str(self._content(notice)["referrer"])
        except SealedDataUnreadable:
            return ""  # that the user has gone is known all the same

    # --- The partner's server asks -------------------------------------------------------------------------

    async def list(
        self,
        *,
        state: NoticeState | None = None,
        callback: CallbackName | None = None,
        limit: int,
        before: str | None = None,
    ) -> Page[Notice]:
        query = select(Notice)
        if state is not None:
            query = query.where(Notice.state == state)
        if callback is not None:
            query = query.where(Notice.callback == callback)
        return await self._database.page(query, key=Notice.notice_id, limit=limit, before=before)

    async def get(self, notice_id: str) -> tuple[Notice, Content]:
        """Raises: NoticeNotFound, SealedDataUnreadable."""
        notice = await self._get(notice_id)
        return notice, self._content(notice)

    async def replay(self, notice_id: str, *, key_id: str | None = None) -> Notice:
        """Hand a notice over now, also one that was handled; the caller waits. `key_id`: for whom, for the log.

        Raises: NoticeNotFound, NoticeNotReplayable, SealedDataUnreadable, and what the handler raises; the notice
        is then as open or as handled as before.
        """
        notice = await self._get(notice_id)
        handler = self._handler_of(notice)
        if notice.state not in (NoticeState.OPEN, NoticeState.HANDLED) or notice.outcome in (
            CONSOLE_TEST,
            REGISTRATION,
        ):
            raise NoticeNotReplayable
        if notice.content is None:
            raise NoticeNotReplayable("its content was erased with the user")
        if handler is None:
            raise NoticeNotReplayable("nothing handles this callback")
        self._log.info("notice_replayed", notice_id=notice_id, callback=notice.callback, key_id=key_id)
        if notice.state == NoticeState.OPEN:
            return await self._handle(notice_id)
        outcome = await self._hand_over(notice, handler)
        async with self._database.transaction() as session:
            again: Notice | None = await session.scalar(
                update(Notice)
                .where(Notice.notice_id == notice_id)
                .values(outcome=outcome, attempts=Notice.attempts + 1, handled_at=self._clock())
                .returning(Notice)
            )
            if again is not None and outcome == ERASED:
                await forget(session, again)
        if again is None:
            raise NoticeNotFound  # its retention ended meanwhile
        self._note_handled(again)
        return again

    # --- Shared ------------------------------------------------------------------------------------------

    async def _get(self, notice_id: str) -> Notice:
        async with self._database.transaction() as session:
            notice = await session.get(Notice, notice_id)
        if notice is None:
            raise NoticeNotFound
        return notice

    def _content(self, notice: Notice) -> Content:
        if notice.content is None:
            return {}
        try:
            content: Content = json.loads(self._vault.open(notice.content, place_of_content(notice.notice_id)))
        except UnsealError as error:
            raise SealedDataUnreadable from error
        return content

    def _subject_hash(self, user_key: int) -> str:
        return self._vault.hash("user_key", str(user_key))
