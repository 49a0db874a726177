"""What all parts of the sandbox's memory have in common."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class NotPossible(Exception):
    """The person at the control API asked for something that the state does not allow."""


class CallFailed(Exception):
    """Toss says FAIL with `code`. The message is for the call log: it says why, without personal data."""

    def __init__(self, code: str, note: str) -> None:
        super().__init__(note)
        self.code = code


@contextmanager
def changing(changed: threading.Condition) -> Iterator[None]:
    """Hold the lock, and wake whoever waits for a change."""
    with changed:
        yield
        changed.notify_all()
