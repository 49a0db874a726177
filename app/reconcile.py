"""Settles what a crash, a timeout or time itself left open: the same services, without HTTP."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from app.callbacks.inbox import Reconciled as InboxReconciled
from app.cert.service import Reconciled as CertReconciled
from app.departure import Departed
from app.events.delivery import Reconciled as EventsReconciled
from app.login.service import Purged
from app.purchases.service import Reconciled as PurchasesReconciled
from app.resources import Resources

T = TypeVar("T")


@dataclass(frozen=True)
class Reconciled:
    """What each part has done; None for one that has failed, of which the log says more."""

    cert: CertReconciled | None
    notices: InboxReconciled | None
    departed: Departed | None
    purchases: PurchasesReconciled | None
    purged: Purged | None
    events: EventsReconciled | None

    @property
    def has_failed(self) -> bool:
        return None in vars(self).values()


async def reconcile(resources: Resources) -> Reconciled:
    """Safe to run at any time, on any replica, as often as wanted. A part that fails keeps none from running."""
    return Reconciled(
        cert=await _part("cert", resources.cert.reconcile),
        notices=await _part("notices", resources.inbox.reconcile),
        departed=await _part("departed", resources.departure.reconcile),
        purchases=await _part("purchases", resources.purchases.reconcile),
        purged=await _part("purged", resources.login.purge),
        # Last, as the others may have something to tell.
        events=await _part("events", resources.delivery.reconcile),
    )


async def _part(name: str, run: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await run()
    except Exception as error:  # noqa: BLE001 - see above; the text may show whom it is about
        structlog.stdlib.get_logger("app.reconcile").error(
            "reconcile_failed", part=name, cause=type(error).__name__
        )
        return None
