"""Users, their sessions, logins under way; verifications that belong to a session."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def instant() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "app_user",
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("user_key", sa.Text(), nullable=True),
        sa.Column("anon_key", sa.Text(), nullable=True),
        sa.Column("link_version", sa.Integer(), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("linked_at", instant(), nullable=False),
        sa.Column("unlinked_at", instant(), nullable=True),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("agreed_terms", sa.JSON(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("ci_hash", sa.String(64), nullable=True),
        sa.Column("access_token", sa.Text(), nullable=True),
        sa.Column("access_expires_at", instant(), nullable=True),
        sa.Column("refresh_token", sa.Text(), nullable=True),
        sa.Column("refresh_expires_at", instant(), nullable=True),
        sa.Column("refresh_lease_id", sa.String(36), nullable=True),
        sa.Column("refresh_lease_until", instant(), nullable=True),
        sa.Column("unlink_wanted_at", instant(), nullable=True),
        sa.Column("unlink_sent_at", instant(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", name="pk_app_user"),
        sa.UniqueConstraint("key_hash", name="uq_app_user_key_hash"),
    )
    op.create_index("ix_app_user_linked_at", "app_user", ["linked_at"])
    op.create_index("ix_app_user_unlinked_at", "app_user", ["unlinked_at"])
    op.create_index("ix_app_user_unlink_wanted_at", "app_user", ["unlink_wanted_at"])
    op.create_table(
        "login_session",
        sa.Column("session_id", sa.String(36), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("expires_at", instant(), nullable=False),
        sa.Column("ends_at", instant(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_login_session"),
        sa.UniqueConstraint("token_hash", name="uq_login_session_token_hash"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["app_user.user_id"], name="fk_login_session_user_id_app_user", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_login_session_user_id", "login_session", ["user_id"])
    op.create_index("ix_login_session_expires_at", "login_session", ["expires_at"])
    op.create_table(
        "login_exchange",
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", instant(), nullable=False),
        sa.Column("lease_id", sa.String(36), nullable=True),
        sa.Column("lease_until", instant(), nullable=True),
        sa.Column("grant", sa.Text(), nullable=True),
        sa.Column("settled_at", instant(), nullable=True),
        sa.Column("problem", sa.String(64), nullable=True),
        sa.Column("toss_code", sa.String(64), nullable=True),
        sa.Column("user_id", sa.String(36), nullable=True),
        sa.PrimaryKeyConstraint("code_hash", name="pk_login_exchange"),
    )
    op.create_index("ix_login_exchange_created_at", "login_exchange", ["created_at"])
    op.add_column("verification", sa.Column("session_id", sa.String(36), nullable=True))
    op.add_column("verification", sa.Column("user_id", sa.String(36), nullable=True))
    op.create_index("ix_verification_user_id", "verification", ["user_id"])


def downgrade() -> None:
    op.drop_index("ix_verification_user_id", "verification")
    op.drop_column("verification", "user_id")
    op.drop_column("verification", "session_id")
    op.drop_table("login_exchange")
    op.drop_table("login_session")
    op.drop_table("app_user")
