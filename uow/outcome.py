"""What became of a COMMIT whose answer was lost: `Database(url, outcome=TrueOutcome())` asks the database.

The transaction's id is read before COMMIT is sent, which is one round trip more for each unit that writes;
when the connection dies while COMMIT is on its way, another connection is asked for the status of that id
(https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT). The answer counts only
on the same timeline: after a failover the new server may have given the id to somebody else. So may the
same server after a crash, because an id is on its disk no sooner than the first record of its transaction.

Optional: the core knows no more of it than that there is somebody to ask.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from threading import Thread
from time import monotonic, sleep

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["TrueOutcome"]

logger = logging.getLogger("uow")

_IN_PROGRESS = "in progress"
_KEPT: dict[str | None, bool] = {"committed": True, "aborted": False}
_PAUSE = 0.05  # seconds between two questions while the server is busy with the COMMIT, or away

# The timeline is the first part of the name of the file that is being written; a standby has none.
_TIMELINE = "substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
# A recovery after a crash throws the statistics away, also one in which the postmaster lived on; a clean stop
# keeps them (https://www.postgresql.org/docs/current/monitoring-stats.html).
_SINCE = "extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text"
# Of two clusters that both began on their own, each is on its first timeline.
_CLUSTER = "(SELECT system_identifier::text FROM pg_control_system())"
_WHO_AM_I = f"SELECT pg_current_xact_id_if_assigned()::text, {_TIMELINE}, {_SINCE}, {_CLUSTER}"
_NUMBER = "CAST(CAST(:number AS text) AS xid8)"
# After a crash the id is the transaction's own, or was given again because nothing of the transaction is
# left. Only a second owner can be in progress, or has an id that nobody has had yet (its age counts from the
# next one that will be given; a snapshot's xmax does not, it comes after the last that has ended); and only
# `committed` can be either's.
_WHAT_BECAME = text(
    f"SELECT CASE WHEN pg_is_in_recovery() OR {_TIMELINE} <> :timeline OR {_CLUSTER} <> :cluster THEN NULL "
    f"WHEN {_SINCE} = :since THEN pg_xact_status({_NUMBER}) "
    f"WHEN age({_NUMBER}::xid) <= 0 THEN 'aborted' "
    f"WHEN pg_xact_status({_NUMBER}) <> 'committed' THEN pg_xact_status({_NUMBER}) END"
)


@dataclass(frozen=True, slots=True)
class TransactionId:
    """Names a transaction for as long as the server goes on from where it was."""

    number: str
    timeline: str
    since: str
    cluster: str


@dataclass(frozen=True, slots=True)
class TrueOutcome:
    """Asks PostgreSQL 13 or newer what became of a COMMIT, for at most `seconds`.

    Raises ValueError for a time that is none.
    """

    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds={self.seconds!r} is no number of seconds above 0")

    def identify(self, connection: Connection) -> TransactionId | None:
        """The id of the transaction that is about to be committed; None if it has none.

        Then it has written nothing here, and may yet have done so elsewhere: COMMIT is what gives an id to
        one that only notifies, and what a foreign table is told has none.
        """
        number, timeline, since, cluster = connection.exec_driver_sql(_WHO_AM_I).one()
        return None if number is None else TransactionId(number, timeline, since, cluster)

    async def ask(self, engine: AsyncEngine, transaction: TransactionId | None) -> bool | None:
        """Whether the transaction was committed; None if that cannot be learnt in time."""
        if transaction is None:
            return None
        # A driver that waits for a dead network does not always heed a time-out: it is left behind.
        asking = asyncio.ensure_future(self._ask(engine, transaction))
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            done, _ = await asyncio.wait({asking}, timeout=self.seconds)
        finally:
            asking.cancel()
        return _KEPT.get(asking.result()) if done else None

    def ask_sync(self, engine: Engine, transaction: TransactionId | None) -> bool | None:
        """The same in a thread."""
        if transaction is None:
            return None
        answer: Future[str | None] = Future()

        def ask() -> None:
            answer.set_result(self._ask_sync(engine, transaction))

        Thread(target=ask, name="uow-outcome", daemon=True).start()
        with suppress(TimeoutError):
            return _KEPT.get(answer.result(self.seconds))
        return None

    async def _ask(self, engine: AsyncEngine, transaction: TransactionId) -> str | None:
        until = monotonic() + self.seconds
        while True:
            try:
                async with engine.connect() as connection:
                    status: str | None = await connection.scalar(_WHAT_BECAME, asdict(transaction))
            except (SQLAlchemyError, OSError) as error:
                status = _not_now(error)
            if status != _IN_PROGRESS or monotonic() > until:
                return status
            await asyncio.sleep(_PAUSE)

    def _ask_sync(self, engine: Engine, transaction: TransactionId) -> str | None:
        until = monotonic() + self.seconds
        while True:
            try:
                with engine.connect() as connection:
                    status: str | None = connection.scalar(_WHAT_BECAME, asdict(transaction))
            except (SQLAlchemyError, OSError) as error:
                status = _not_now(error)
            if status != _IN_PROGRESS or monotonic() > until:
                return status
            sleep(_PAUSE)


def _not_now(error: Exception) -> str:
    logger.info("the outcome of a COMMIT cannot be asked for now: %s", error)
    return _IN_PROGRESS
