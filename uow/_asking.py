"""A COMMIT whose answer was lost: whoever can find out is asked what became of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from .errors import OutcomeUnknown

if TYPE_CHECKING:
    from ._transaction import UnitTransaction


class Asking(Protocol):
    """Finds out what became of a COMMIT: `uow.outcome.TrueOutcome` does."""

    def identify(self, connection: Connection) -> Any:
        """What to ask for later, before COMMIT is sent; None if nothing was written."""
        ...

    async def ask(self, engine: AsyncEngine, transaction: Any) -> bool | None:
        """Whether it was kept; None if that cannot be learnt."""
        ...

    def ask_sync(self, engine: Engine, transaction: Any) -> bool | None:
        """The same in a thread."""
        ...


async def learn(work: UnitTransaction, unknown: OutcomeUnknown) -> None:
    """Return if the COMMIT was kept after all; raise what else is true."""
    asking = _asking(work, unknown)
    engine = _engine(work)
    if work.asynchronous:
        kept = await asking.ask(AsyncEngine(engine), work.transaction)
    else:
        ask = partial(asking.ask_sync, engine, work.transaction)
        kept = await anyio.to_thread.run_sync(ask, limiter=work.unit.database.limiter)
    work.learnt(unknown, kept=kept)


def learn_sync(work: UnitTransaction, unknown: OutcomeUnknown) -> None:
    """The same in a thread."""
    work.learnt(unknown, kept=_asking(work, unknown).ask_sync(_engine(work), work.transaction))


def _asking(work: UnitTransaction, unknown: OutcomeUnknown) -> Asking:
    asking = work.unit.asking
    if asking is None or not work.commit_sent or not work.adapter.over_a_link:
        raise unknown
    return asking


def _engine(work: UnitTransaction) -> Engine:
    """The writer, with connections that nobody waits for, and no transaction."""
    made = work.unit.database.engine(work.unit.options, asynchronous=work.asynchronous)
    engine: Engine = made.sync_engine if isinstance(made, AsyncEngine) else made
    creator = engine.pool._creator  # pyright: ignore[reportPrivateUsage]  # it has no other name
    pool = NullPool(creator, dialect=engine.dialect)
    return Engine(pool, engine.dialect, engine.url).execution_options(isolation_level="AUTOCOMMIT")
