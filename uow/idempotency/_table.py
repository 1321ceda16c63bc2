"""The table of the keys, for metadata and for migrations."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem

NAME = "idempotency_keys"


class Operations(Protocol):
    """What is used of Alembic's `op`."""

    def create_table(self, table_name: str, *columns: Any, **kw: Any) -> Any:
        """Create a table."""
        ...

    def create_index(self, index_name: str, table_name: str, columns: Any, **kw: Any) -> Any:
        """Create an index."""
        ...

    def drop_table(self, table_name: str, **kw: Any) -> Any:
        """Drop a table."""
        ...


def table(metadata: MetaData) -> Table:
    """The table as a part of this metadata, for `create_all` and for Alembic's comparison."""
    made = Table(NAME, metadata, *_columns())
    Index(f"ix_{NAME}_expires_at", made.c.expires_at)
    return made


def create_table(op: Operations) -> None:
    """Create the table in an Alembic migration: `create_table(op)` in its `upgrade()`."""
    op.create_table(NAME, *_columns())
    op.create_index(f"ix_{NAME}_expires_at", NAME, ["expires_at"])


def drop_table(op: Operations) -> None:
    """Drop it, in the migration's `downgrade()`; its index goes with it."""
    op.drop_table(NAME)


def _columns() -> list[SchemaItem]:
    return [
        Column("principal", String(255), nullable=False, comment="whose key it is"),
        Column("key", String(255), nullable=False),
        Column("token", String(32), nullable=False, comment="of the attempt that has written the row"),
        Column("request", String(512), nullable=False, comment="method and path, for people"),
        Column("fingerprint", LargeBinary, nullable=False, comment="of all that makes it the same request"),
        Column("status", SmallInteger, comment="of the answer, as the rest of it: null until it is there"),
        Column("headers", Text),
        Column("body", LargeBinary),
        Column("expires_at", BigInteger, nullable=False, comment="seconds since 1970"),
        PrimaryKeyConstraint("principal", "key", name=f"pk_{NAME}"),
    ]
