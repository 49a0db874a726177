"""Verifications and server keys."""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "verification",
        sa.Column("tx_id", sa.String(64), nullable=False),
        sa.Column("request_type", sa.String(16), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("requested_at", instant(), nullable=False),
        sa.Column("expires_at", instant(), nullable=False),
        sa.Column("completion_seen_at", instant(), nullable=True),
        sa.Column("completed_at", instant(), nullable=True),
        sa.Column("result_state", sa.String(16), nullable=False),
        sa.Column("end_code", sa.String(64), nullable=True),
        sa.Column("reads_succeeded", sa.Integer(), nullable=False),
        sa.Column("reads_unknown", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.String(36), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("identity", sa.Text(), nullable=True),
        sa.Column("signature", sa.Text(), nullable=True),
        sa.Column("signature_report", sa.JSON(), nullable=True),
        sa.Column("ci_hash", sa.String(64), nullable=True),
        sa.Column("di_hash", sa.String(64), nullable=True),
        sa.Column("stored_at", instant(), nullable=True),
        sa.Column("erased_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("tx_id", name=op.f("pk_verification")),
        sa.CheckConstraint("reads_succeeded + reads_unknown <= 2", name=op.f("ck_verification_reads")),
        sa.CheckConstraint(
            "reads_succeeded >= 0 AND reads_unknown >= 0", name=op.f("ck_verification_reads_not_negative")
        ),
    )
    op.create_index("ix_verification_ci_hash", "verification", ["ci_hash"])
    op.create_index("ix_verification_created_at", "verification", ["created_at"])
    op.create_index("ix_verification_lease_until", "verification", ["lease_until"])
    op.create_table(
        "server_key",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("expires_at", instant(), nullable=True),
        sa.Column("revoked_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_server_key")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_server_key_key_hash")),
    )


def downgrade() -> None:
    op.drop_table("server_key")
    op.drop_table("verification")
