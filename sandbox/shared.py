"""What all parts of the sandbox's memory have in common."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class NotPossible(Exception):
    """The person at the control API asked for something that the state does not allow."""


@contextmanager
def changing(changed: threading.Condition) -> Iterator[None]:
    """Hold the lock, and wake whoever waits for a change."""
    with changed:
        yield
        changed.notify_all()
