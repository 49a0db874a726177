"""What Toss's refusals to tell of an order mean for our callers: one table, and nothing else that knows a code."""

from app import upstream
from app.errors import AppError, TossNotConfigured, UpstreamRefused, UpstreamUnavailable
from app.toss.errors import TossError

REFUSALS: dict[str, type[AppError]] = {
    "INTERNAL_ERROR": UpstreamUnavailable,
    "4034": TossNotConfigured,
    "4050": TossNotConfigured,
}
"""Toss's codes whose meaning is known (apps-in-toss reference 3.2); every other code travels on as data."""


def app_error(error: TossError) -> AppError:
    return upstream.app_error(error, refusals=REFUSALS, otherwise=UpstreamRefused)
