"""Notices: what Toss has called about."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "notice",
        sa.Column("notice_id", sa.String(36), nullable=False),
        sa.Column("callback", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=True),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("subject_hash", sa.String(64), nullable=True),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("open_key", sa.String(128), nullable=True),
        sa.Column("received_at", instant(), nullable=False),
        sa.Column("last_received_at", instant(), nullable=False),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", instant(), nullable=True),
        sa.Column("handled_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("notice_id", name=op.f("pk_notice")),
        sa.UniqueConstraint("open_key", name=op.f("uq_notice_open_key")),
        sa.CheckConstraint("(state = 'OPEN') = (open_key IS NOT NULL)", name=op.f("ck_notice_open_key")),
        sa.CheckConstraint("deliveries >= 1 AND attempts >= 0", name=op.f("ck_notice_counts")),
    )
    op.create_index("ix_notice_subject_hash", "notice", ["subject_hash"])
    op.create_index("ix_notice_state_next_attempt_at", "notice", ["state", "next_attempt_at"])


def downgrade() -> None:
    op.drop_table("notice")
