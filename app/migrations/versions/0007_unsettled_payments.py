"""Payments of which nobody knows whether money has moved, and those that are held: an index to watch them by."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    is_unsettled = sa.text("state IN ('PENDING', 'REFUNDING', 'HELD')")
    op.create_index(
        "ix_payment_unsettled",
        "payment",
        ["state", "changed_at"],
        sqlite_where=is_unsettled,
        postgresql_where=is_unsettled,
    )


def downgrade() -> None:
    op.drop_index("ix_payment_unsettled", "payment")
