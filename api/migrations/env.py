"""Alembic runs this file; the connection is the caller's, and so is its transaction."""

from __future__ import annotations

from alembic import context

from api import idempotency as _idempotency  # noqa: F401 - fills the metadata
from api import outbox as _outbox  # noqa: F401 - fills the metadata
from api.items import models as _items  # noqa: F401 - fills the metadata
from api.models import Base
from api.orders import models as _orders  # noqa: F401 - fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    # True on SQLite as well: the unit that runs this begins its transaction itself.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
