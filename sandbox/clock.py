"""The sandbox's own time, which tests and people may move."""

import threading
from datetime import UTC, datetime, timedelta, timezone

# Toss writes instants in Korean time, whole seconds, with the offset (reference 3.2).
KOREA = timezone(timedelta(hours=9))


class Clock:
    """Real time plus an offset, so that time keeps flowing after it was moved."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = timedelta()

    def now(self) -> datetime:
        with self._lock:
            return datetime.now(UTC) + self._offset

    def advance(self, seconds: float) -> datetime:
        with self._lock:
            self._offset += timedelta(seconds=seconds)
        return self.now()

    def set(self, instant: datetime) -> None:
        """Move to `instant`, which must be aware."""
        with self._lock:
            self._offset = instant - datetime.now(UTC)

    def reset(self) -> None:
        with self._lock:
            self._offset = timedelta()


def korean_time(instant: datetime) -> str:
    return instant.astimezone(KOREA).isoformat(timespec="seconds")


def pay_time(instant: datetime) -> str:
    """As Toss Pay writes it; that it is Korean time is inferred (reference of Apps in Toss, 8.3)."""
    return instant.astimezone(KOREA).strftime("%Y-%m-%d %H:%M:%S")


def iap_time(instant: datetime) -> str:
    """As the samples of in-app purchase have it: Korean time that does not say so (reference 10.1, 14.2)."""
    return instant.astimezone(KOREA).replace(tzinfo=None).isoformat(timespec="seconds")
