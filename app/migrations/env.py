"""Alembic's environment: the caller brings the connection (see app.database.Database.migrate)."""

from alembic import context

import app.callbacks.tables
import app.cert.tables
import app.events.tables
import app.payments.tables
import app.purchases.tables
import app.server_keys  # noqa: F401 - for its table
from app.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
