"""Purchases, and subscriptions as Toss tells of them."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "purchase",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("sku", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("toss_status", sa.String(255), nullable=False),
        sa.Column("granted_at", instant(), nullable=True),
        sa.Column("refunded_at", instant(), nullable=True),
        sa.Column("changed_at", instant(), nullable=False),
        sa.Column("checked_at", instant(), nullable=False),
        sa.Column("next_check_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_purchase")),
        sa.CheckConstraint(
            "(state = 'REFUNDED') = (refunded_at IS NOT NULL)", name=op.f("ck_purchase_refunded_at")
        ),
        sa.CheckConstraint("state = 'REFUNDED' OR granted_at IS NOT NULL", name=op.f("ck_purchase_granted_at")),
    )
    op.create_index("ix_purchase_user_id", "purchase", ["user_id"])
    op.create_index("ix_purchase_key_hash", "purchase", ["key_hash"])
    op.create_index("ix_purchase_next_check_at", "purchase", ["next_check_at"])
    op.create_index("ix_purchase_changed_at", "purchase", ["changed_at"])
    op.create_table(
        "subscription",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("sku", sa.String(255), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("access_granted", sa.Boolean(), nullable=False),
        sa.Column("expires_at", instant(), nullable=True),
        sa.Column("auto_renew", sa.Boolean(), nullable=True),
        sa.Column("occurred_at", instant(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", instant(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_subscription")),
    )
    op.create_index("ix_subscription_changed_at", "subscription", ["changed_at"])


def downgrade() -> None:
    op.drop_table("subscription")
    op.drop_table("purchase")
