"""How a user leaves: at Toss, in what Toss Cert has verified, in what login knows, in what may be charged.

Spans features, alone of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import structlog

from app.cert.service import CertService
from app.errors import AppError, StorageUnavailable, UserNotFound
from app.login.service import LoginService
from app.login.tables import User
from app.payments.billing import BillingService
from app.toss.governor import Lane

ATTEMPTS = 3
LOOK_BACK = timedelta(days=2)
"""`reconcile` runs more often than that."""


class Referrer(StrEnum):
    """Why Toss calls back (apps-in-toss reference 14.1). Others may come."""

    UNLINK = "UNLINK"
    WITHDRAWAL_TERMS = "WITHDRAWAL_TERMS"
    WITHDRAWAL_TOSS = "WITHDRAWAL_TOSS"


class UnlinkCause(StrEnum):
    """What the partner's server is told besides Toss's own words for it."""

    REQUEST = "REQUEST"
    """The user, or the partner for them, has asked us."""
    OTHER = "OTHER"
    """Toss gave another reason: not passed on, because it may be any text."""


class NoticeOutcome(StrEnum):
    ENDED = "ENDED"
    ERASED = "ERASED"
    STALE = "STALE"
    """Toss says that the link is alive: the user has linked again since."""
    NOT_LINKED = "NOT_LINKED"


@dataclass(frozen=True)
class Departed:
    unlinks_finished: int
    users_erased: int


class Departure:
    def __init__(
        self,
        *,
        login: LoginService,
        cert: CertService,
        billing: BillingService,
        clock: Callable[[], datetime],
    ) -> None:
        self._login = login
        self._cert = cert
        self._billing = billing
        self._clock = clock
        self._log = structlog.stdlib.get_logger("app.departure")

    async def by_request(self, user_id: str, *, lane: Lane = Lane.INTERACTIVE) -> None:
        """The user, or the partner for them, wants to go: unlink at Toss, then erase.

        If Toss does not confirm, nothing is erased yet, and `reconcile` tries again.

        Raises: UserNotFound, UnlinkNeedsLogin, and what a failed call to Toss raises.
        """
        user = await self._login.user(user_id)
        await self._billing.end_at_toss(user_id, lane=lane)
        await self._login.unlink_at_toss(user, lane=lane)
        for _ in range(ATTEMPTS):
            # The user goes last: from there the rest is found again after a crash.
            await self._take_away(user_id)
            if await self._login.erase(user, cause=UnlinkCause.REQUEST):
                # Once more for one that was being started meanwhile; from now on, starting finds no user.
                await self._take_away(user_id)
                return
            # A login has come between. Before the unlink took effect, it has ended with the rest; after it, it
            # is a link of its own, which nobody has asked to end.
            try:
                user = await self._login.user(user_id)
            except UserNotFound:
                return
            if user.unlinked_at is None and await self._login.is_link_alive(user):
                return
        raise StorageUnavailable

    async def by_notice(self, user_key: int, referrer: str) -> str:
        """Toss says that the link is over. As a notice may be late, Toss is asked whether it still is.

        Who leaves Toss altogether is forgotten altogether; of the others the row remains by which a returning user
        is recognised, and what the law wants kept of a verification.

        Raises: AppError when it cannot be decided now.
        """
        is_final = referrer == Referrer.WITHDRAWAL_TOSS
        cause = referrer if referrer in set(Referrer) else UnlinkCause.OTHER
        for _ in range(ATTEMPTS):
            user = await self._login.find(user_key)
            if user is None:
                return NoticeOutcome.NOT_LINKED
            if user.unlinked_at is None:
                if await self._login.is_link_alive(user):
                    return NoticeOutcome.STALE
                await self._billing.end_of(user.user_id)
                # False if somebody has logged in meanwhile: then look again.
                if await self._login.end_link(user, cause=cause) and not is_final:
                    return NoticeOutcome.ENDED
                continue
            if not is_final:
                return NoticeOutcome.NOT_LINKED
            # Only now that the link is over for certain; the user goes last, as above.
            await self._take_away(user.user_id)
            if await self._login.erase(user):
                await self._take_away(user.user_id)
                return NoticeOutcome.ERASED
        raise StorageUnavailable

    async def reconcile(self) -> Departed:
        """Finish what users have asked for, and forget those past their retention."""
        finished = 0
        for user in await self._login.leaving():
            finished += await self._try_to_finish(user)
        erased = 0
        while users := await self._login.past_retention():
            for user in users:
                await self._take_away(user.user_id)
                erased += await self._login.erase(user)
                await self._take_away(user.user_id)
        await self._erase_what_nobody_owns()
        return Departed(finished, erased)

    async def given(self, tx_id: str, user_id: str) -> bool:
        """Whether a verification that was just given to a user has found them still there; else it is erased."""
        if user_id in await self._login.known([user_id]):
            return True
        await self._cert.abandon(tx_id)
        return False

    async def _take_away(self, user_id: str) -> None:
        await self._cert.erase_of(user_id)
        await self._billing.end_of(user_id)

    async def _erase_what_nobody_owns(self) -> None:
        """A crash may have come between the end of a user and that of a verification begun meanwhile."""
        owners = await self._cert.owners(since=self._clock() - LOOK_BACK)
        for user_id in owners - await self._login.known(owners):
            await self._take_away(user_id)

    async def _try_to_finish(self, user: User) -> bool:
        try:
            await self.by_request(user.user_id, lane=Lane.BACKGROUND)
        except AppError as error:
            # One user of whom Toss wants a fresh login must not keep the others.
            self._log.warning("unlink_not_finished", user_id=user.user_id, code=error.code)
            return False
        return True
