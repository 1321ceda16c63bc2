"""The outbox: events that are owed to their destinations."""

from __future__ import annotations

from alembic import op

from uow.outbox import create_table, drop_table

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_table(op)


def downgrade() -> None:
    drop_table(op)
