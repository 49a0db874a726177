"""Events: what the partner's server is told."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    is_pending = sa.text("state = 'PENDING'")
    op.create_table(
        "event",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("occurred_at", instant(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", instant(), nullable=True),
        sa.Column("give_up_at", instant(), nullable=True),
        sa.Column("lease_id", sa.String(36), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("delivered_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_event")),
        sa.UniqueConstraint("event_id", name=op.f("uq_event_event_id")),
        sa.CheckConstraint(
            "(state = 'PENDING') = (next_attempt_at IS NOT NULL)", name=op.f("ck_event_next_attempt")
        ),
        sa.CheckConstraint("state <> 'PENDING' OR give_up_at IS NOT NULL", name=op.f("ck_event_give_up")),
    )
    op.create_index("ix_event_pending", "event", ["position"], sqlite_where=is_pending, postgresql_where=is_pending)
    op.create_index("ix_event_subject_position", "event", ["subject", "position"])
    op.create_index("ix_event_occurred_at", "event", ["occurred_at"])


def downgrade() -> None:
    op.drop_table("event")
