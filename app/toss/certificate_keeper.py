"""Which client certificate is in use: the best pair that works, swapped under load (G8). Knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

import structlog

from app.toss.certificates import (
    CertificateFault,
    CertificateSources,
    ClientCertificate,
    Clock,
    FaultKind,
    Found,
    RepairNote,
    expiry_mark,
)
from app.toss.errors import CertificateRefused, NotSent, TossError

Monotonic = Callable[[], float]

LAST_MARK = 1
"""Days; the last of EXPIRY_MARKS, at which an end that is near becomes an error."""


class Pool(Protocol):
    """Connections that show one certificate."""

    async def prove(self) -> None:
        """Complete a real request at every host: TLS 1.3 tells of a refusal only at the first read.

        Raises: TossError.
        """

    async def aclose(self) -> None: ...


P = TypeVar("P", bound=Pool)


@dataclass(frozen=True)
class CertificateAlarm:
    kind: FaultKind
    since: datetime
    what: str
    """Plain words; where and what, never content."""


@dataclass(eq=False)
class Lease(Generic[P]):
    """A certificate and its connections, as long as somebody uses them."""

    certificate: ClientCertificate
    pool: P
    users: int = 0
    retired_at: float | None = None
    """Monotonic seconds."""


class CertificateKeeper(Generic[P]):
    """Keeps the best pair that works in use, and swaps it under load.

    There is no watcher: whoever wants a connection looks at the files, one at a time and every `look_every` at
    most, and only the very first waits for what is found. Whatever is wrong with the files, the pair in use
    stays and the alarm goes on.
    """

    def __init__(
        self,
        *,
        sources: CertificateSources,
        open_pool: Callable[[ClientCertificate], Awaitable[P]],
        clock: Clock,
        look_every: timedelta,
        retry_every: timedelta,
        longest_call: timedelta,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """`retry_every`: between proofs of a pair that has failed one. `longest_call`: what a drain waits."""
        self._sources = sources
        self._open_pool = open_pool
        self._clock = clock
        self._monotonic = monotonic
        self._look_every = look_every.total_seconds()
        self._retry_every = retry_every.total_seconds()
        self._longest_call = longest_call.total_seconds()
        self._current: Lease[P] | None = None
        self._retired: list[Lease[P]] = []
        self._stamp: tuple[object, ...] | None = None
        self._found = Found()
        self._failed: dict[ClientCertificate, tuple[CertificateFault, float]] = {}
        """Pairs that were refused, or not proved, and when each may be tried again."""
        self._is_doubted = False
        self._doubt_again_at = 0.0
        self._next_look = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._is_look_wanted = False
        self._alarm: CertificateAlarm | None = None
        self._faults: tuple[CertificateFault, ...] = ()
        self._announced: set[tuple[str, int]] = set()
        """Fingerprints of pairs whose end has been announced, and at which mark."""
        self._log = structlog.stdlib.get_logger(__name__)

    @property
    def certificate(self) -> ClientCertificate | None:
        """The one in use."""
        return self._current.certificate if self._current else None

    @property
    def alarm(self) -> CertificateAlarm | None:
        return self._alarm

    @property
    def faults(self) -> tuple[CertificateFault, ...]:
        """All that is wrong at present; the alarm names the first."""
        return self._faults

    @property
    def repairs(self) -> tuple[RepairNote, ...]:
        return self._found.repairs

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Lease[P]]:
        """The pool to use for one call.

        Raises: NotSent when there is no usable pair at all.
        """
        self.look_if_due()
        if self._current is None:
            await self._looked()
        lease = self._current
        if lease is None:
            raise NotSent("no usable client certificate", is_tls=True)
        lease.users += 1
        try:
            yield lease
        finally:
            lease.users -= 1
            await self._drain()

    def look_if_due(self) -> None:
        """Begin to look at the files if it is time; health checks call this too, for when there is no traffic."""
        if self._monotonic() >= self._next_look:
            self._look()

    async def look(self) -> None:
        """Look now, and wait until what is found is in use."""
        self._look()
        await self._looked()

    async def replace(self, refused: ClientCertificate) -> bool:
        """Whether another pair is in use now that this one was refused. Of many callers one does the work."""
        if self._is_current(refused) and refused not in self._failed:
            self._fail(CertificateFault(FaultKind.REFUSED, refused.where), refused)
            self._look()
        await self._looked()
        return self._current is not None and not self._is_current(refused)

    def doubt(self) -> None:
        """A connection broke as when a server refuses a certificate without a word: let the pair prove itself."""
        now = self._monotonic()
        if now >= self._doubt_again_at:
            self._doubt_again_at = now + self._retry_every
            self._is_doubted = True
            self._look()

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        leases = [*self._retired, *([self._current] if self._current else [])]
        self._current, self._retired = None, []
        for lease in leases:
            await lease.pool.aclose()

    def _is_current(self, certificate: ClientCertificate) -> bool:
        return self._current is not None and self._current.certificate == certificate

    async def _looked(self) -> None:
        if self._looking is not None:
            await asyncio.shield(self._looking)  # others wait for it too

    def _look(self) -> None:
        self._next_look = self._monotonic() + self._look_every
        self._is_look_wanted = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_while_wanted())

    async def _look_while_wanted(self) -> None:
        # A wish that comes during a look is about something that the look may have passed already.
        while self._is_look_wanted:
            self._is_look_wanted = False
            try:
                await self._read()
                problems = await self._choose()
            except Exception as error:  # noqa: BLE001 - whatever it is, the pair in use stays and somebody is told
                problems = [CertificateFault(FaultKind.UNREADABLE, "certificates", type(error).__name__)]
            self._report([*problems, *self._found.faults_at(self._clock())])
            self._announce_end()
            await self._drain()

    async def _read(self) -> None:
        stamp = await asyncio.to_thread(self._sources.stamp)
        if stamp == self._stamp:
            return
        self._found = await asyncio.to_thread(self._sources.read)
        # Taken before reading: a file that changed meanwhile is read again at the next look.
        self._stamp = stamp
        # Somebody has been at work: what had failed may be tried again at once.
        now = self._monotonic()
        self._failed = {pair: (fault, now) for pair, (fault, _) in self._failed.items()}
        for note in self._found.repairs:
            self._log.warning("client_certificate_repaired", where=note.where, repair=note.repair.value)

    async def _choose(self) -> list[CertificateFault]:
        """Put the best usable pair that works in use; what is wrong with the better ones."""
        problems: list[CertificateFault] = []
        usable = self._found.usable(self._clock())
        is_doubted, self._is_doubted = self._is_doubted, False
        # Without an alternative a proof decides nothing, and at the start it would only cost time.
        is_proof_useful = len(usable) > 1 or self._current is not None
        for pair in usable:
            fault, retry_at = self._failed.get(pair, (None, 0.0))
            if fault is not None and self._monotonic() < retry_at:
                problems.append(fault)
                continue
            is_trusted = fault is None and self._is_current(pair) and not (is_doubted and len(usable) > 1)
            new_fault = None if is_trusted else await self._try(pair, is_proof_needed=is_proof_useful)
            if new_fault is None:
                return problems
            problems.append(new_fault)
        if self._current is None and usable:
            # None could be proved, perhaps because nothing can be reached: calls will tell.
            await self._try(usable[0], is_proof_needed=False)
        return problems

    async def _try(self, pair: ClientCertificate, *, is_proof_needed: bool) -> CertificateFault | None:
        """Prove a pair, and use it if it passes; on connections of its own, as kept ones would prove nothing."""
        try:
            pool = await self._open_pool(pair)
            try:
                if is_proof_needed:
                    await pool.prove()
            except BaseException:
                await pool.aclose()
                raise
        except CertificateRefused as error:
            return self._fail(CertificateFault(FaultKind.REFUSED, pair.where, str(error)), pair)
        except TossError as error:
            return self._fail(CertificateFault(FaultKind.UNPROVED, pair.where, str(error)), pair)
        except OSError as error:
            return self._fail(CertificateFault(FaultKind.UNREADABLE, pair.where, type(error).__name__), pair)
        if is_proof_needed:
            self._failed.pop(pair, None)
        self._swap(Lease(pair, pool))
        return None

    def _fail(self, fault: CertificateFault, pair: ClientCertificate) -> CertificateFault:
        self._failed[pair] = (fault, self._monotonic() + self._retry_every)
        return fault

    def _swap(self, lease: Lease[P]) -> None:
        old, self._current = self._current, lease
        if old is not None:
            old.retired_at = self._monotonic()
            self._retired.append(old)
            if old.certificate == lease.certificate:
                return
        self._log.info(
            "client_certificate_in_use",
            subject=lease.certificate.subject,
            serial=lease.certificate.serial,
            not_after=lease.certificate.not_after.isoformat(),
            where=lease.certificate.where,
        )

    async def _drain(self) -> None:
        """Close the pools that nobody uses any more, and those whose users must have come to grief."""
        if not self._retired:
            return
        oldest = self._monotonic() - self._longest_call
        done = [lease for lease in self._retired if not lease.users or (lease.retired_at or 0.0) <= oldest]
        self._retired = [lease for lease in self._retired if lease not in done]
        for lease in done:
            await lease.pool.aclose()

    def _report(self, faults: list[CertificateFault]) -> None:
        before, self._faults = self._alarm, tuple(faults)
        if not faults:
            self._alarm = None
            if before is not None:
                self._log.info("client_certificate_alarm_over", kind=before.kind.value)
            return
        kind, what = faults[0].kind, str(faults[0])
        is_same = before is not None and before.kind == kind
        since = before.since if before is not None and is_same else self._clock()
        self._alarm = CertificateAlarm(kind=kind, since=since, what=what)
        if before is None or before.what != what:
            self._log.error("client_certificate_alarm", kind=kind.value, what=what)

    def _announce_end(self) -> None:
        """Once for each mark that the pair in use has reached; that it has expired is an alarm's affair."""
        pair, now = self.certificate, self._clock()
        mark = expiry_mark(pair, now) if pair is not None else None
        if pair is None or mark is None or pair.not_after < now or (pair.fingerprint, mark) in self._announced:
            return
        self._announced.add((pair.fingerprint, mark))
        self._log.log(
            logging.ERROR if mark <= LAST_MARK else logging.WARNING,
            "client_certificate_expires_soon",
            days_left=pair.days_left(now),
            where=pair.where,
        )
