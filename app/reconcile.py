"""Settles what a crash, a timeout or time itself left open: the same services, without HTTP."""

from app.cert.service import Reconciled
from app.resources import Resources


async def reconcile(resources: Resources) -> Reconciled:
    """Safe to run at any time, on any replica, as often as wanted.

    Raises: StorageUnavailable.
    """
    return await resources.cert.reconcile()
