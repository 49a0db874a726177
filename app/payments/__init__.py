"""Toss Pay: orders, payments, refunds, recurring payment."""
