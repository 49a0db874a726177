"""Settles what a crash, a timeout or time itself left open: the same services, without HTTP."""

from dataclasses import dataclass

from app.callbacks.inbox import Reconciled as InboxReconciled
from app.cert.service import Reconciled as CertReconciled
from app.departure import Departed
from app.payments.billing import Reconciled as BillingReconciled
from app.payments.service import Reconciled as PaymentsReconciled
from app.purchases.service import Reconciled as PurchasesReconciled
from app.resources import Resources


@dataclass(frozen=True)
class Reconciled:
    cert: CertReconciled
    notices: InboxReconciled
    departed: Departed
    payments: PaymentsReconciled
    billing: BillingReconciled
    purchases: PurchasesReconciled
    sessions_ended: int
    codes_forgotten: int


async def reconcile(resources: Resources) -> Reconciled:
    """Safe to run at any time, on any replica, as often as wanted.

    Raises: StorageUnavailable.
    """
    cert = await resources.cert.reconcile()
    notices = await resources.inbox.reconcile()
    departed = await resources.departure.reconcile()
    payments = await resources.payments.reconcile()
    billing = await resources.billing.reconcile()
    purchases = await resources.purchases.reconcile()
    sessions_ended, codes_forgotten = await resources.login.purge()
    return Reconciled(cert, notices, departed, payments, billing, purchases, sessions_ended, codes_forgotten)
