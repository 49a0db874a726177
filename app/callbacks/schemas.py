"""Callbacks and notices on our wire."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from pydantic import Field

from app.callbacks.tables import CallbackName, Notice, NoticeState
from app.wire import Wire


class ReceivedBody(Wire):
    received: bool = True


class NoticeBody(Wire):
    notice_id: str
    callback: CallbackName
    state: NoticeState
    outcome: str | None = Field(
        description="Of a login-unlink: ENDED, ERASED, STALE (the user has linked again since), NOT_LINKED, "
        "CONSOLE_TEST"
    )
    deliveries: int = Field(description="How often the same came while it was open")
    attempts: int = Field(description="Failed ones")
    received_at: datetime
    last_received_at: datetime
    next_attempt_at: datetime | None
    handled_at: datetime | None

    @classmethod
    def of(cls, notice: Notice) -> Self:
        return cls(
            notice_id=notice.notice_id,
            callback=CallbackName(notice.callback),
            state=NoticeState(notice.state),
            outcome=notice.outcome,
            deliveries=notice.deliveries,
            attempts=notice.attempts,
            received_at=notice.received_at,
            last_received_at=notice.last_received_at,
            next_attempt_at=notice.next_attempt_at,
            handled_at=notice.handled_at,
        )


class NoticesBody(Wire):
    notices: list[NoticeBody]


class NoticeWithContentBody(Wire):
    notice: NoticeBody
    content: dict[str, Any] = Field(description="What was understood, or, if nothing was, what came")

    @classmethod
    def of(cls, notice: Notice, content: Mapping[str, Any]) -> Self:
        return cls(notice=NoticeBody.of(notice), content=dict(content))
