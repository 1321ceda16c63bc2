"""What the app under test stores, and how it tells what happened inside it."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from sqlalchemy import ForeignKey, Select, insert, select, text
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from starlette.background import BackgroundTask
from starlette.responses import Response

from uow import UnitOfWork, on_commit
from uow.observe import Settlement, UnitObserver

MISSING_TABLE = text("SELECT 1 FROM there_is_no_such_table")

# Refusals that cost the whole transaction, or even the connection.
FATAL = {
    "sqlite": text("INSERT OR ROLLBACK INTO items (name) VALUES (:name)"),
    "postgresql": text("SELECT pg_terminate_backend(pg_backend_pid()), CAST(:name AS text)"),
}
# What would let a reader write, if it stayed on the connection.
UNLOCK = {
    "sqlite": text("PRAGMA query_only = OFF"),
    "postgresql": text("SET default_transaction_read_only = off"),
}


class Base(AsyncAttrs, DeclarativeBase):
    """The tables."""


class Item(Base):
    """A row with a unique name: a second one of the same name is refused at once."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    parts: Mapped[list["Part"]] = relationship()


class Part(Base):
    """A row that needs its item, which the database asks for only at COMMIT."""

    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id", deferrable=True, initially="DEFERRED"))


ADD_ITEM = insert(Item)
ALL_NAMES = select(Item.name).order_by(Item.id)
NO_SUCH_ITEM = 2_000_000_000
ROWS = range(1, 6)
"""What stands behind the name in the items that a stream reads."""

request_name: ContextVar[str] = ContextVar("request_name", default="")
_told: defaultdict[str, list[str]] = defaultdict(list)
_lock = threading.Lock()
counts: Counter[str] = Counter()
releases: dict[str, Callable[[], Any]] = {}
"""What lets the task or thread of a request go on that has outlived it."""


class MappedError(Exception):
    """An exception that the app maps to an answer with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class PurposelyFailed(Exception):
    """What a test lets a callback, a task or a handler fail with."""


def rows_of(name: str) -> Select[str]:
    """The names of the items that a stream reads."""
    return select(Item.name).where(Item.name.like(f"{name}-%")).order_by(Item.name)


def tell(name: str, what: str) -> None:
    """Write down that something happened, under the name that the request was made with."""
    with _lock:
        _told[name].append(what)


def told(name: str) -> list[str]:
    """What was written down under a name, in order."""
    with _lock:
        return list(_told[name])


def count(what: str, by: int = 1) -> None:
    """Count something, from any thread."""
    with _lock:
        counts[what] += by


def attempt_told(name: str, kind: str, error: Exception | None) -> None:
    """Tell how an attempt ended."""
    tell(name, f"{kind}: nothing raised" if error is None else f"{kind}: {type(error).__name__}: {error}")


def answer(name: str, status: int, body: bytes = b"") -> Response:
    """An answer with a background task that tells that it ran."""
    return Response(body, status_code=status, background=BackgroundTask(tell, name, "background"))


def tell_on_commit(name: str) -> None:
    """Register a callback that tells that it ran."""
    on_commit(partial(tell, name, "on_commit"))


class TellingObserver(UnitObserver):
    """Tells the outcome of each unit."""

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        """Count it."""
        count("connected")

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        """Count it."""
        count("statements")

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        """Tell the outcome, apart for units of requests and of `new_unit()`."""
        tell(request_name.get(), f"{'settled' if unit.is_request else 'new_unit'} {unit.outcome}")

    def client_gone(self, unit: UnitOfWork) -> None:
        """Clients of these tests stay."""
        count("gone")
