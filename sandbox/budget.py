"""The request budget of each mini-app, over all partner APIs together (reference 3.3)."""

import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sandbox.clock import Clock
from sandbox.shared import changing

DEFAULT_LIMIT = 3_000
DEFAULT_WINDOW_SECONDS = 60.0


@dataclass(frozen=True)
class Limit:
    requests: int = DEFAULT_LIMIT
    window_seconds: float = DEFAULT_WINDOW_SECONDS


@dataclass
class _Window:
    begun_at: datetime
    used: int = 0


class Budget:
    """Fixed windows, each begun by the first call after the one before it ended.

    That the window is fixed is inferred (reference 15.2); so is that refused calls cost nothing.
    """

    def __init__(self, clock: Clock, changed: threading.Condition) -> None:
        self._clock = clock
        self._changed = changed
        self.clear()

    def clear(self) -> None:
        with changing(self._changed):
            self._limits: dict[str, Limit] = {}
            self._windows: dict[str, _Window] = {}
            self._arrivals: defaultdict[str, list[datetime]] = defaultdict(list)
            self._refusals: Counter[str] = Counter()

    def set_limit(
        self, app_name: str, requests: int = DEFAULT_LIMIT, *, window_seconds: float = DEFAULT_WINDOW_SECONDS
    ) -> None:
        """Begins a new window."""
        with changing(self._changed):
            self._limits[app_name] = Limit(requests, window_seconds)
            self._windows.pop(app_name, None)

    def limit(self, app_name: str) -> Limit:
        with self._changed:
            return self._limits.get(app_name, Limit())

    def spend(self, app_name: str) -> int | None:
        """Count a call that arrived. None: it may go on. Else: refused, for so many seconds."""
        with changing(self._changed):
            now = self._clock.now()
            self._arrivals[app_name].append(now)
            limit = self.limit(app_name)
            length = timedelta(seconds=limit.window_seconds)
            window = self._windows.get(app_name)
            if window is None or not window.begun_at <= now < window.begun_at + length:
                window = self._windows[app_name] = _Window(now)
            if window.used >= limit.requests:
                self._refusals[app_name] += 1
                return max(1, math.ceil((window.begun_at + length - now).total_seconds()))
            window.used += 1
            return None

    def calls(self, app_name: str) -> int:
        """How many arrived, refused ones included."""
        with self._changed:
            return len(self._arrivals[app_name])

    def refusals(self, app_name: str) -> int:
        with self._changed:
            return self._refusals[app_name]

    def most_in_any_window(self, app_name: str, seconds: float = DEFAULT_WINDOW_SECONDS) -> int:
        """The most calls, refused ones included, that ever arrived within `seconds`, wherever the window lies."""
        with self._changed:
            arrivals = sorted(self._arrivals[app_name])
        length, most, first = timedelta(seconds=seconds), 0, 0
        for last, arrived in enumerate(arrivals):
            while arrived - arrivals[first] >= length:
                first += 1
            most = max(most, last - first + 1)
        return most

    def snapshot(self) -> dict[str, object]:
        with self._changed:
            return {
                name: {
                    "limit": self.limit(name).requests,
                    "windowSeconds": self.limit(name).window_seconds,
                    "calls": self.calls(name),
                    "refusals": self._refusals[name],
                    "mostInAnyMinute": self.most_in_any_window(name),
                }
                for name in sorted({*self._limits, *self._arrivals})
            }
