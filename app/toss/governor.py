"""The request budget: what Toss grants a mini-app in a minute, shared by all processes and never exceeded (G7).

The budget is cut once and for all into a pot that the processes share and an own share for each of them. A call
is charged to the shared pot, or, if that is spent or out of reach, to the share of its own process. As the parts
add up to the budget, no outage, partition or hand-over can make the sum exceed it (decision 0012).
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final, Protocol

from app.toss.errors import BudgetExhausted

PER_MINUTE: Final = 3000
"""Requests a minute that Toss grants a mini-app, over all of its API together (apps-in-toss reference 3.3)."""
TRANSIT: Final = timedelta(seconds=1)
"""By how much one call's way from here to Toss's counter may be longer than another's."""
WINDOW: Final = timedelta(minutes=1) + TRANSIT
BUCKETS: Final = 60
"""Admissions are counted in so many steps a window. Each counts until its whole step is a window old: up to one
step (a sixtieth) too long, never too short."""
MIN_PAUSE: Final = timedelta(seconds=1)
MAX_PAUSE: Final = timedelta(minutes=5)
"""More is not believed: a nonsense answer must not silence the service for good. Toss may say 4095 again."""
USUAL_PAUSE: Final = timedelta(minutes=1)
"""After a 4095 that names no usable time."""
ALL: Final = "all"
"""The counter of every call, whatever its lane."""


class Lane(Enum):
    INTERACTIVE = "interactive"
    """Somebody waits for the answer."""
    BACKGROUND = "background"


@dataclass(frozen=True)
class SubLimit:
    """A limit that counts beside the main one. `subject` tells apart what is counted separately."""

    name: str
    per_minute: int
    subject: str = ""


# The messenger's own limits (apps-in-toss reference 3.3, 11).
MESSENGER_SEND: Final = SubLimit("messenger-send", 15_000)
MESSENGER_BULK: Final = SubLimit("messenger-bulk", 3000)
MESSENGER_TEST: Final = SubLimit("messenger-test", 3000)


def messenger_user(user_hash: str) -> SubLimit:
    """One user's limit, by the keyed hash of the user key: it becomes part of a name in Redis."""
    return SubLimit("messenger-user", 10, user_hash)


class Verdict(Enum):
    ADMITTED = "admitted"
    FULL = "full"
    PAUSED = "paused"
    CLOSED = "closed"
    """The store may have forgotten admissions; it admits nothing until these no longer count."""


@dataclass(frozen=True)
class Charge:
    """One on this counter, if that leaves it at `cap` at most."""

    counter: str
    cap: int
    subject: str = ""


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    wait: timedelta = timedelta()
    """Until there is room, if nobody else takes it."""
    counter: str = ""
    """The one that is full for longest."""


class BudgetStoreUnavailable(Exception):
    """The shared pot cannot be reached; each process then has its own share alone."""


class BudgetStore(Protocol):
    """Where the processes share the pot, on one clock. Every method may raise BudgetStoreUnavailable."""

    async def take(self, charges: Sequence[Charge]) -> Decision:
        """All of the charges or none, in one step."""

    async def pause(self, length: timedelta) -> None:
        """Admit nothing for so long from now. A longer pause stays in force."""

    async def spent(self, counter: str) -> int:
        """How much of the last window counts on this counter, which has no subject."""


@dataclass(frozen=True)
class BudgetRules:
    """How much, and how it is cut. Shares are fractions, and every part is rounded down."""

    processes: int
    """The most that may run at once: replicas times workers, with those that a roll-out adds."""
    per_minute: int = PER_MINUTE
    head_room: float = 0.1
    """What is left of every limit to those who call past this service."""
    own_share: float = 0.3
    """Of the budget: what the processes have between them when the shared pot is out of reach."""
    background_share: float = 0.5
    """Of each part: more is never spent on background work."""
    interactive_reserve: float = 0.2
    """Of each part: the rest, into which background work never reaches."""

    def __post_init__(self) -> None:
        shares = (self.head_room, self.own_share, self.background_share, self.interactive_reserve)
        if self.processes < 1 or self.per_minute < 1 or not all(0 <= share < 1 for share in shares):
            raise ValueError("not a budget")

    def budget(self, per_minute: int) -> int:
        return math.floor(per_minute * (1 - self.head_room))

    def own(self, per_minute: int) -> int:
        """One process's share of this limit; nothing of a limit that is too small to be cut."""
        return math.floor(self.budget(per_minute) * self.own_share / self.processes)

    def shared(self, per_minute: int) -> int:
        return self.budget(per_minute) - self.processes * self.own(per_minute)

    def charges(self, lane: Lane, sub_limits: Iterable[SubLimit], part: Callable[[int], int]) -> list[Charge]:
        capacity = part(self.per_minute)
        if lane is Lane.INTERACTIVE:
            charges = [Charge(ALL, capacity)]
        else:
            charges = [
                Charge(ALL, capacity - math.ceil(capacity * self.interactive_reserve)),
                Charge("background", math.floor(capacity * self.background_share)),
            ]
        return charges + [
            Charge(limit.name, part(limit.per_minute), limit.subject) for limit in dict.fromkeys(sub_limits)
        ]


def milliseconds(length: timedelta) -> int:
    return max(1, length // timedelta(milliseconds=1))


def step_of(window: timedelta) -> int:
    """Milliseconds of one bucket."""
    return math.ceil(milliseconds(window) / BUCKETS)


class SlidingWindow:
    """Counters over the last window, in this process. `app/shared_state.py` has the same in Lua.

    An admission at `t` is in bucket `t // step`, which counts until its end is a window ago.
    """

    def __init__(self, window: timedelta) -> None:
        self._window = milliseconds(window)
        self._step = step_of(window)
        self._counts: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        self._oldest = 0

    def take(self, charges: Sequence[Charge], *, now: float) -> Decision:
        """`now` in seconds of a clock that never goes back."""
        instant = int(now * 1000)
        self._forget_before((instant - self._window) // self._step)
        refusals = [refusal for charge in charges if (refusal := self._refusal(charge, instant))]
        if refusals:
            return max(refusals, key=lambda refusal: refusal.wait)
        for charge in charges:
            buckets = self._counts[charge.counter, charge.subject]
            bucket = instant // self._step
            buckets[bucket] = buckets.get(bucket, 0) + 1
        return Decision(Verdict.ADMITTED)

    def spent(self, counter: str, *, now: float) -> int:
        oldest = (int(now * 1000) - self._window) // self._step
        buckets = self._counts.get((counter, ""), {})
        return sum(count for bucket, count in buckets.items() if bucket >= oldest)

    def _forget_before(self, oldest: int) -> None:
        if oldest <= self._oldest:
            return
        self._oldest = oldest
        for key, buckets in list(self._counts.items()):
            for bucket in [bucket for bucket in buckets if bucket < oldest]:
                del buckets[bucket]
            if not buckets:
                del self._counts[key]

    def _refusal(self, charge: Charge, instant: int) -> Decision | None:
        buckets = self._counts.get((charge.counter, charge.subject), {})
        excess = sum(buckets.values()) - charge.cap + 1
        if excess <= 0:
            return None
        ends_at = instant + self._window + self._step  # for a cap of nothing: no wait is long enough
        for bucket in sorted(buckets):
            excess -= buckets[bucket]
            if excess <= 0:
                ends_at = (bucket + 1) * self._step + self._window
                break
        return Decision(Verdict.FULL, timedelta(milliseconds=ends_at - instant), charge.counter)


@dataclass(frozen=True)
class Standing:
    """Calls of the last minute, and how many more there are now."""

    used: int
    left: int


class Governor:
    """Admits a call, or refuses it at once. It never waits, and never raises anything but BudgetExhausted."""

    def __init__(
        self,
        *,
        store: BudgetStore,
        rules: BudgetRules,
        window: timedelta = WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._rules = rules
        self._monotonic = monotonic
        self._own = SlidingWindow(window)
        # The process that this one replaces may have spent the same share a moment ago.
        self._own_opens_at = monotonic() + (window + timedelta(milliseconds=step_of(window))).total_seconds()
        self._paused_until = -math.inf
        self._published_until = -math.inf

    async def admit(self, lane: Lane, *, sub_limits: Iterable[SubLimit] = ()) -> None:
        """Call this right before sending, once for each request that goes out.

        Raises: BudgetExhausted.
        """
        limits = tuple(sub_limits)
        await self._publish_pause()
        self._heed_pause()
        try:
            shared = await self._store.take(self._rules.charges(lane, limits, self._rules.shared))
        except BudgetStoreUnavailable:
            shared = Decision(Verdict.CLOSED, timedelta.max)
        if shared.verdict is Verdict.PAUSED:
            self._pause_for(shared.wait, is_published=True)
        self._heed_pause()  # also one that arrived while the store was asked
        if shared.verdict is Verdict.ADMITTED:
            return
        now = self._monotonic()
        if shared.verdict is Verdict.FULL and now < self._own_opens_at:
            raise BudgetExhausted(shared.wait, limit=shared.counter)
        own = self._own.take(self._rules.charges(lane, limits, self._rules.own), now=now)
        if own.verdict is not Verdict.ADMITTED:
            raise BudgetExhausted(min(shared.wait, own.wait), limit=shared.counter or own.counter)

    async def pause(self, seconds: object = None) -> None:
        """Toss said 4095: every process stops for as long as `error.data.retryAfterSeconds` says."""
        self._pause_for(pause_length(seconds), is_published=False)
        await self._publish_pause()

    async def standing(self) -> Standing:
        """Of the shared pot; of its own share each process knows only what it has spent itself.

        Raises: BudgetStoreUnavailable.
        """
        used = await self._store.spent(ALL)
        return Standing(used, max(0, self._rules.shared(self._rules.per_minute) - used))

    def _pause_for(self, length: timedelta, *, is_published: bool) -> None:
        until = self._monotonic() + min(length, MAX_PAUSE).total_seconds()
        self._paused_until = max(self._paused_until, until)
        if is_published:
            self._published_until = max(self._published_until, until)

    async def _publish_pause(self) -> None:
        """Tell the others, now or, if the store is away, before the next call."""
        until = self._paused_until
        remaining = until - self._monotonic()
        if remaining <= 0 or until <= self._published_until:
            return
        try:
            await self._store.pause(timedelta(seconds=remaining))
        except BudgetStoreUnavailable:
            return
        self._published_until = max(self._published_until, until)

    def _heed_pause(self) -> None:
        remaining = self._paused_until - self._monotonic()
        if remaining > 0:
            raise BudgetExhausted(timedelta(seconds=remaining), limit="pause")


def pause_length(seconds: object) -> timedelta:
    """What `retryAfterSeconds` means, whatever Toss wrote there: numbers come as text too."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | str):
        return USUAL_PAUSE
    try:
        number = float(seconds)
    except OverflowError:
        number = math.inf if isinstance(seconds, int) and seconds > 0 else -math.inf
    except ValueError:
        return USUAL_PAUSE
    if math.isnan(number) or number < 0:
        return USUAL_PAUSE
    low, high = MIN_PAUSE.total_seconds(), MAX_PAUSE.total_seconds()
    return timedelta(seconds=min(max(number, low), high))
