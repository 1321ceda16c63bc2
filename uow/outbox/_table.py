"""The table of the outbox: a row is one event that is owed to one destination."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

NAME = "outbox_events"
CHANNEL = "outbox_events"
PENDING, DEAD = "pending", "dead"


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
    made = Table(NAME, metadata, *_columns(), sqlite_autoincrement=True)
    Index(_INDEX, *(made.c[name] for name in _INDEXED))
    made.primary_key.name = f"pk_{NAME}"
    return made


def create_table(op: Operations) -> None:
    """Create the table in an Alembic migration: `create_table(op)` in its `upgrade()`."""
    key = PrimaryKeyConstraint("number", name=f"pk_{NAME}")
    op.create_table(NAME, *_columns(), key, sqlite_autoincrement=True)
    op.create_index(_INDEX, NAME, list(_INDEXED))


def drop_table(op: Operations) -> None:
    """Drop it, in the migration's `downgrade()`; its index goes with it."""
    op.drop_table(NAME)


_INDEX = f"ix_{NAME}_lane"
_INDEXED = ("destination", "state", "lane", "number")


def _columns() -> list[Column[Any]]:
    # SQLite numbers its rows by itself only in a column whose type is INTEGER, which has 64 bits there.
    number = BigInteger().with_variant(Integer(), "sqlite")
    return [
        Column("number", number, primary_key=True, comment="in the order of commits, for each subject"),
        Column("destination", String(64), nullable=False),
        Column("state", String(8), nullable=False, comment="pending or dead: what was sent is gone"),
        Column("lane", BigInteger, nullable=False, comment="of the subject: what must not overtake"),
        Column("id", String(36), nullable=False),
        Column("type", String(255), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("time", String(32), nullable=False, comment="when it was published, as of RFC 3339"),
        Column("data", Text, nullable=False, comment="JSON"),
        Column("attempts", Integer, nullable=False, comment="to send it, that which is under way included"),
        Column("due", Double, nullable=False, comment="not to be sent before: seconds since 1970"),
        Column("token", String(36), comment="of the attempt that is under way until due"),
        Column("error", String(500), comment="why the last attempt has failed"),
    ]
