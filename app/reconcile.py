"""Settles what a crash, a timeout or time itself left open: the same services, without HTTP."""

from dataclasses import dataclass

import app.callbacks.inbox
import app.cert.service
from app.resources import Resources


@dataclass(frozen=True)
class Reconciled:
    cert: app.cert.service.Reconciled
    notices: app.callbacks.inbox.Reconciled


async def reconcile(resources: Resources) -> Reconciled:
    """Safe to run at any time, on any replica, as often as wanted.

    Raises: StorageUnavailable.
    """
    return Reconciled(cert=await resources.cert.reconcile(), notices=await resources.inbox.reconcile())
