"""The inbox: a callback is recorded before it is handled, and stays open until it has been (G9)."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from app.callbacks.tables import CallbackName, Notice, NoticeState
from app.database import Database
from app.errors import AppError, InternalError, NoticeNotFound, NoticeNotReplayable, SealedDataUnreadable
from app.vault import UnsealError, Vault

Content = Mapping[str, Any]
Handler = Callable[[Content], Awaitable[str]]
"""Answers an outcome in one word. Raises AppError when it cannot be decided now: the notice then stays open."""

GRACE = timedelta(seconds=10)
"""For the process that has received a notice, before `reconcile` takes it up."""
FIRST_REST, LONGEST_REST = timedelta(seconds=30), timedelta(hours=1)
"""Between attempts, doubling."""
PATIENCE_AT_END = 6.0
"""Seconds for handling to end when the process ends. What does not is left open."""
BATCH = 100
FORGOTTEN = "ERASED"
"""The outcome after which nothing about the person remains, here neither."""
NOTHING_TO_DO = "NOT_LINKED"
OVERTAKING = frozenset({"ENDED", NOTHING_TO_DO})
"""Outcomes that a login under way may make wrong."""


@dataclass(frozen=True)
class InboxReconciled:
    notices_handled: int
    notices_left_open: int
    notices_deleted: int


class Inbox:
    def __init__(
        self,
        *,
        database: Database,
        vault: Vault,
        clock: Callable[[], datetime],
        handlers: Mapping[CallbackName, Handler],
        retention: timedelta,
        checkpoint: Callable[[str], Awaitable[None]],
        counted: Callable[[str, str], None] = lambda _callback, _outcome: None,
        senders_patience: timedelta = timedelta(seconds=1),
    ) -> None:
        """`counted` is told the callback and the outcome of every handling."""
        self._database = database
        self._vault = vault
        self._clock = clock
        self._handlers = handlers
        self._retention = retention
        self._checkpoint = checkpoint
        self._counted = counted
        self._senders_patience = senders_patience.total_seconds()
        self._tasks: set[asyncio.Task[bool]] = set()
        self._log = structlog.stdlib.get_logger("app.callbacks")

    # --- Receiving ----------------------------------------------------------------------------------------

    async def receive(self, callback: CallbackName, content: Content, *, subject: str | None) -> None:
        """Record what is to be handled, then handle it: the sender waits for a moment at most.

        The same content that comes again while it is open is the same notice. Callbacks carry no id, and the same
        can happen twice for real: what comes after it was handled is a new notice.

        Raises: StorageUnavailable, in which case nothing was recorded.
        """
        notice = await self._record(callback, content, state=NoticeState.OPEN, subject=subject)
        await self._checkpoint("notice_recorded")
        if notice.deliveries > 1 and notice.next_attempt_at is not None and notice.next_attempt_at > self._clock():
            return  # whoever handles it will see that it has come again
        task = asyncio.create_task(self._handle_quietly(notice.notice_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=self._senders_patience)

    async def keep(self, callback: CallbackName, content: Content, state: NoticeState, outcome: str | None) -> None:
        """Record what is not to be handled."""
        await self._record(callback, content, state=state, outcome=outcome)
        self._counted(callback.value, outcome or state.value)

    async def _record(
        self,
        callback: CallbackName,
        content: Content,
        *,
        state: NoticeState,
        subject: str | None = None,
        outcome: str | None = None,
    ) -> Notice:
        now, text = self._clock(), json.dumps(content, sort_keys=True)
        is_open = state is NoticeState.OPEN
        open_key = self._vault.hash("notice", f"{callback}\x1f{text}") if is_open else None
        notice = Notice(
            notice_id=str(uuid.uuid4()),
            callback=callback,
            state=state,
            outcome=outcome,
            subject_hash=self._subject_hash(subject),
            open_key=open_key,
            deliveries=1,
            attempts=0,
            received_at=now,
            last_received_at=now,
            next_attempt_at=now + GRACE if is_open else None,
            handled_at=None if is_open else now,
        )
        notice.content = self._vault.seal(text, notice.place_of("content"))
        try:
            async with self._database.transaction() as session:
                known: Notice | None = await session.scalar(
                    update(Notice)
                    .where(Notice.open_key == open_key, Notice.open_key.is_not(None))
                    .values(deliveries=Notice.deliveries + 1, last_received_at=now)
                    .returning(Notice)
                )
                if known is None:
                    session.add(notice)
        except IntegrityError:
            # The same came at the same moment, and has been recorded.
            return await self._record(callback, content, state=state, subject=subject, outcome=outcome)
        recorded = known or notice
        self._log.info(
            "notice_received", notice_id=recorded.notice_id, callback=callback.value, deliveries=recorded.deliveries
        )
        return recorded

    # --- Handling -----------------------------------------------------------------------------------------

    async def _handle(self, notice_id: str) -> Notice:
        """Handle a notice until it is closed. Two replicas may do so at once: handlers may be repeated.

        Raises: AppError, after which the notice is open and has a time for the next attempt.
        """
        while True:
            notice = await self.get(notice_id)
            handler = self._handlers.get(CallbackName(notice.callback))
            if notice.state != NoticeState.OPEN or handler is None:
                return notice
            try:
                outcome = await handler(self.content_of(notice))
            except AppError as error:
                await self._postpone(notice, error.code)
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the notice must not be lost
                # A bug of ours. The text of an exception may show what it was given.
                await self._postpone(notice, type(error).__name__)
                raise InternalError from None
            await self._checkpoint("notice_handled")
            closed = await self._close(notice, outcome)
            if closed is not None:
                self._log.info(
                    "notice_handled", notice_id=notice_id, callback=notice.callback, outcome=closed.outcome
                )
                self._counted(notice.callback, outcome)
                return closed

    async def _close(self, notice: Notice, outcome: str) -> Notice | None:
        """None if the same has come again since: that one may be about something newer."""
        async with self._database.transaction() as session:
            closed: Notice | None = await session.scalar(
                update(Notice)
                .where(
                    Notice.notice_id == notice.notice_id,
                    Notice.state == NoticeState.OPEN,
                    Notice.deliveries == notice.deliveries,
                )
                .values(
                    state=NoticeState.HANDLED,
                    outcome=outcome if outcome != NOTHING_TO_DO else func.coalesce(Notice.outcome, outcome),
                    open_key=None,
                    next_attempt_at=None,
                    handled_at=self._clock(),
                )
                .returning(Notice)
            )
            if closed is None and outcome != NOTHING_TO_DO:
                # Done all the same: the next look will find nothing to do, and that is not what should be told.
                await session.execute(
                    update(Notice)
                    .where(
                        Notice.notice_id == notice.notice_id,
                        Notice.outcome.is_(None) | (Notice.outcome == NOTHING_TO_DO),
                    )
                    .values(outcome=outcome)
                )
            if closed is not None and closed.outcome == FORGOTTEN:
                await session.execute(
                    update(Notice)
                    .where(Notice.subject_hash == closed.subject_hash, Notice.state != NoticeState.OPEN)
                    .values(content=None, subject_hash=None)
                )
        return closed

    async def _postpone(self, notice: Notice, why: str) -> None:
        rest = min(FIRST_REST * 2 ** min(notice.attempts, 10), LONGEST_REST)
        async with self._database.transaction() as session:
            await session.execute(
                update(Notice)
                .where(Notice.notice_id == notice.notice_id, Notice.state == NoticeState.OPEN)
                .values(attempts=Notice.attempts + 1, next_attempt_at=self._clock() + rest)
            )
        self._counted(notice.callback, "POSTPONED")
        self._log.warning("notice_postponed", notice_id=notice.notice_id, callback=notice.callback, why=why)

    async def _handle_quietly(self, notice_id: str) -> bool:
        """Whether it is closed now. What goes wrong is in the log, and the notice stays open."""
        try:
            return (await self._handle(notice_id)).state != NoticeState.OPEN
        except AppError as error:
            self._log.warning("notice_left_open", notice_id=notice_id, code=error.code)
            return False

    async def recheck(self, subject: str, *, since: datetime) -> str | None:
        """Handle once more what was received about somebody who was not there yet; the last outcome.

        For whoever has just stored somebody: a notice may have overtaken the storing.
        """
        async with self._database.transaction() as session:
            recent = await session.scalars(
                update(Notice)
                .where(
                    Notice.subject_hash == self._subject_hash(subject),
                    Notice.received_at >= since,
                    Notice.state == NoticeState.HANDLED,
                    Notice.outcome.in_(OVERTAKING),
                )
                .values(state=NoticeState.OPEN, outcome=None, next_attempt_at=self._clock() + GRACE)
                .returning(Notice.notice_id)
            )
            reopened = recent.all()
        outcome = None
        for notice_id in reopened:
            await self._handle_quietly(notice_id)
            outcome = (await self.get(notice_id)).outcome
        return outcome

    # --- What the partner's server may ask ----------------------------------------------------------------

    async def list(
        self,
        *,
        state: NoticeState | None = None,
        callback: CallbackName | None = None,
        before: str | None = None,
        limit: int,
    ) -> Sequence[Notice]:
        """Newest first. `before` is the id of the last one of the page before.

        Raises: NoticeNotFound for an unknown `before`.
        """
        query = select(Notice).order_by(Notice.received_at.desc(), Notice.notice_id.desc()).limit(limit)
        if state is not None:
            query = query.where(Notice.state == state)
        if callback is not None:
            query = query.where(Notice.callback == callback)
        if before is not None:
            last = await self.get(before)
            query = query.where(
                (Notice.received_at < last.received_at)
                | ((Notice.received_at == last.received_at) & (Notice.notice_id < last.notice_id))
            )
        async with self._database.transaction() as session:
            return (await session.scalars(query)).all()

    async def get(self, notice_id: str) -> Notice:
        """Raises: NoticeNotFound."""
        async with self._database.transaction() as session:
            notice = await session.get(Notice, notice_id)
        if notice is None:
            raise NoticeNotFound
        return notice

    def content_of(self, notice: Notice) -> Content:
        """Raises: SealedDataUnreadable."""
        if notice.content is None:
            return {}
        try:
            content: Content = json.loads(self._vault.open(notice.content, notice.place_of("content")))
        except UnsealError as error:
            raise SealedDataUnreadable from error
        return content

    async def replay(self, notice_id: str) -> Notice:
        """Handle it now, also if it was handled before.

        Raises: NoticeNotFound, NoticeNotReplayable, and what the handler raises.
        """
        notice = await self.get(notice_id)
        if notice.state not in (NoticeState.OPEN, NoticeState.HANDLED) or notice.content is None:
            raise NoticeNotReplayable
        if CallbackName(notice.callback) not in self._handlers:
            raise NoticeNotReplayable("nothing handles this callback")
        async with self._database.transaction() as session:
            await session.execute(
                update(Notice)
                .where(Notice.notice_id == notice_id, Notice.state == NoticeState.HANDLED)
                .values(state=NoticeState.OPEN, outcome=None, next_attempt_at=self._clock() + GRACE)
            )
        return await self._handle(notice_id)

    # --- What a crash or time leaves to do ----------------------------------------------------------------

    async def reconcile(self) -> InboxReconciled:
        """Handle what is open and due, and delete what is past its retention."""
        now = self._clock()
        handled = left = 0
        last = ""
        while True:
            async with self._database.transaction() as session:
                due = (
                    await session.scalars(
                        select(Notice.notice_id)
                        .where(
                            Notice.state == NoticeState.OPEN, Notice.next_attempt_at <= now, Notice.notice_id > last
                        )
                        .order_by(Notice.notice_id)
                        .limit(BATCH)
                    )
                ).all()
            if not due:
                break
            for last in due:
                is_closed = await self._handle_quietly(last)
                handled, left = handled + is_closed, left + (not is_closed)
        async with self._database.transaction() as session:
            deleted = await session.scalars(
                delete(Notice)
                .where(Notice.state != NoticeState.OPEN, Notice.last_received_at < now - self._retention)
                .returning(Notice.notice_id)
            )
            count = len(deleted.all())
        return InboxReconciled(handled, left, count)

    async def aclose(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE_AT_END)
        for task in self._tasks:
            task.cancel()

    def _subject_hash(self, subject: str | None) -> str | None:
        return None if subject is None else self._vault.hash("user_key", subject)
