"""Orders, payments with their history, billing keys."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def charged() -> list[sa.Column[object]]:
    return [
        sa.Column("product_desc", sa.String(255), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.Column("amount_tax_free", sa.Integer(), nullable=False),
        sa.Column("amount_taxable", sa.Integer(), nullable=True),
        sa.Column("amount_vat", sa.Integer(), nullable=True),
        sa.Column("amount_service_fee", sa.Integer(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "payment_order",
        sa.Column("order_id", sa.String(36), nullable=False),
        sa.Column("is_test", sa.Boolean(), nullable=False),
        sa.Column("idempotency_hash", sa.String(64), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("created_by", sa.String(16), nullable=False),
        sa.Column("reference", sa.String(64), nullable=True),
        sa.Column("user_id", sa.String(36), nullable=True),
        sa.Column("key_hash", sa.String(64), nullable=True),
        sa.Column("billing_key_id", sa.String(36), nullable=True),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("expires_at", instant(), nullable=True),
        sa.Column("canceled_at", instant(), nullable=True),
        *charged(),
        sa.PrimaryKeyConstraint("order_id", name="pk_payment_order"),
        sa.UniqueConstraint("idempotency_hash", name="uq_payment_order_idempotency_hash"),
    )
    op.create_index("ix_payment_order_created_at", "payment_order", ["created_at"])
    op.create_table(
        "payment",
        sa.Column("order_no", sa.String(50), nullable=False),
        sa.Column("is_test", sa.Boolean(), nullable=False),
        sa.Column("order_id", sa.String(36), nullable=True),
        sa.Column("product_id", sa.String(64), nullable=True),
        sa.Column("billing_key_id", sa.String(36), nullable=True),
        sa.Column("open_key", sa.String(36), nullable=True),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("toss_user", sa.Text(), nullable=False),
        sa.Column("pay_token", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("quiet_until", instant(), nullable=True),
        sa.Column("next_check_at", instant(), nullable=True),
        sa.Column("checks", sa.Integer(), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("changed_at", instant(), nullable=False),
        sa.Column("paid_at", instant(), nullable=True),
        sa.Column("paid_amount", sa.Integer(), nullable=True),
        sa.Column("pay_method", sa.String(32), nullable=True),
        sa.Column("transaction_id", sa.String(64), nullable=True),
        sa.Column("toss_code", sa.String(64), nullable=True),
        sa.Column("hold_reason", sa.String(32), nullable=True),
        sa.Column("refund_reason", sa.Text(), nullable=True),
        sa.Column("refund_by", sa.String(16), nullable=True),
        sa.Column("refund_asked_at", instant(), nullable=True),
        sa.Column("refund_no", sa.String(64), nullable=True),
        sa.Column("refunded_at", instant(), nullable=True),
        *charged(),
        sa.PrimaryKeyConstraint("order_no", name="pk_payment"),
        sa.UniqueConstraint("open_key", name="uq_payment_open_key"),
        sa.CheckConstraint("amount > 0", name=op.f("ck_payment_amount")),
        sa.CheckConstraint(
            "(state IN ('CREATED', 'READY', 'PENDING', 'REFUNDING')) = (next_check_at IS NOT NULL)",
            name=op.f("ck_payment_next_check"),
        ),
    )
    op.create_index("ix_payment_next_check_at", "payment", ["next_check_at"])
    op.create_index("ix_payment_order_id", "payment", ["order_id"])
    op.create_index("ix_payment_user_id", "payment", ["user_id"])
    op.create_index("ix_payment_changed_at", "payment", ["changed_at"])
    op.create_table(
        "payment_step",
        sa.Column("step_id", sa.String(36), nullable=False),
        sa.Column("order_no", sa.String(50), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", instant(), nullable=False),
        sa.Column("from_state", sa.String(16), nullable=True),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("cause", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(16), nullable=True),
        sa.Column("detail", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("step_id", name="pk_payment_step"),
    )
    op.create_index("ix_payment_step_order_no", "payment_step", ["order_no"])
    op.create_table(
        "billing_key",
        sa.Column("billing_key_id", sa.String(36), nullable=False),
        sa.Column("is_test", sa.Boolean(), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("toss_user", sa.Text(), nullable=False),
        sa.Column("product_desc", sa.String(255), nullable=False),
        sa.Column("wrapped_token", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("next_check_at", instant(), nullable=True),
        sa.Column("checks", sa.Integer(), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("changed_at", instant(), nullable=False),
        sa.PrimaryKeyConstraint("billing_key_id", name="pk_billing_key"),
    )
    op.create_index("ix_billing_key_user_id", "billing_key", ["user_id"])
    op.create_index("ix_billing_key_state_next_check_at", "billing_key", ["state", "next_check_at"])


def downgrade() -> None:
    op.drop_table("billing_key")
    op.drop_table("payment_step")
    op.drop_table("payment")
    op.drop_table("payment_order")
