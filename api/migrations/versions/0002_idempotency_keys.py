"""Idempotency keys, with the answers that repeats are given."""

from __future__ import annotations

from alembic import op

from uow.idempotency import create_table, drop_table

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_table(op)


def downgrade() -> None:
    drop_table(op)
