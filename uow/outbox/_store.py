"""What is done to the rows of the outbox: found, claimed, ended; and for operators, listed.

There is no mark that says how far a relay has come: what is to be sent is what is there. A claim is a lease
and holds no transaction open: a row is not due before its end, and whoever comes then may have it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import (
    CursorResult,
    Double,
    MetaData,
    TextClause,
    and_,
    cast,
    delete,
    exists,
    extract,
    func,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from ._table import DEAD, NAME, PENDING, table

State = Literal["pending", "dead"]

_ROWS = table(MetaData())
_of = _ROWS.c
_LONGEST_ERROR = 500


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event that is this relay's to send until its lease is over."""

    number: int
    lane: int
    id: str
    type: str
    subject: str
    time: str
    data: str
    attempts: int
    """This one included."""
    token: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that was in vain: when the next one is due, in seconds from now; None is never."""

    claimed: Claimed
    error: str
    again: float | None


@cache
def _now(dialect: str) -> ColumnElement[float]:
    """Seconds since 1970 by the clock of the database, which all relays share."""
    if dialect == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return (func.julianday("now") - 2440587.5) * 86400.0


@cache
def _heads(dialect: str) -> TextClause:
    """The first pending event of each lane, if it is due; from one lane to the next through the index.

    However many events wait behind the first of their lane, none of them is looked at.
    """
    now = "extract(epoch FROM clock_timestamp())" if dialect == "postgresql" else _SQLITE_NOW
    mine = f"{NAME} AS e WHERE e.destination = :destination AND e.state = '{PENDING}'"
    first = f"FROM {mine} AND e.lane = lanes.lane ORDER BY e.number LIMIT 1"
    return text(
        f"WITH RECURSIVE lanes(lane) AS (SELECT (SELECT min(e.lane) FROM {mine} AND e.lane > :after)"
        f" UNION ALL SELECT (SELECT min(e.lane) FROM {mine} AND e.lane > lanes.lane) FROM lanes"
        f" WHERE lanes.lane IS NOT NULL)"
        f" SELECT number, lane FROM (SELECT lane, (SELECT e.number {first}) AS number,"
        f" (SELECT e.due {first}) AS due FROM lanes WHERE lanes.lane IS NOT NULL) AS heads"
        f" WHERE due <= {now} LIMIT :most"
    )


_SQLITE_NOW = "(julianday('now') - 2440587.5) * 86400.0"
BEFORE_ALL = -1
"""The lane before all lanes."""


@dataclass(frozen=True, slots=True)
class Due:
    """The first event of a lane, and it is due."""

    number: int
    lane: int


_PLANNING = text(
    "SELECT set_config('plan_cache_mode', 'force_custom_plan', true),"
    " set_config('enable_seqscan', 'off', true)"
)


async def plan_anew(session: AsyncSession) -> None:
    """Plan each statement of this transaction by what is there now, and through the index.

    PostgreSQL keeps a plan with the connection, until the next ANALYZE: one from when the table had just been
    emptied reads all of it at each step, and a look at 10,000 lanes takes seconds
    (https://www.postgresql.org/docs/current/sql-prepare.html).
    """
    if _dialect(session) == "postgresql":
        await session.execute(_PLANNING)


async def find(session: AsyncSession, destination: str, after: int, most: int) -> list[Due]:
    """What is due, one event for each lane, from the lane after this one on."""
    given = {"destination": destination, "after": after, "most": most}
    return [Due(*row) for row in (await session.execute(_heads(_dialect(session)), given)).all()]


async def claim(session: AsyncSession, numbers: Collection[int], lease: float) -> list[Claimed]:
    """Take those of these that nobody else has taken or sent meanwhile; they are due after the lease."""
    now = _now(_dialect(session))
    before = _ROWS.alias("before")
    earlier = and_(
        before.c.destination == _of.destination,
        before.c.state == PENDING,
        before.c.lane == _of.lane,
        before.c.number < _of.number,
    )
    free = (
        select(_of.number)
        .where(_of.number.in_(numbers), _of.state == PENDING, _of.due <= now, ~exists().where(earlier))
        .with_for_update(skip_locked=True, of=_ROWS)
    )
    taking = (
        update(_ROWS)
        .where(_of.number.in_(free.scalar_subquery()))
        .values(token=str(uuid4()), attempts=_of.attempts + 1, due=now + lease)
        .returning(*(_of[name] for name in Claimed.__dataclass_fields__))
    )
    rows = (await session.execute(taking)).all()
    return sorted((Claimed(*row) for row in rows), key=lambda each: each.number)


async def end(session: AsyncSession, sent: Collection[int], failed: Sequence[Failed]) -> None:
    """Remove what was sent, and write down what has failed.

    What was sent is gone whoever has claimed it meanwhile: the other side has it. A failure counts only where
    nobody else has taken over.
    """
    if sent:
        await session.execute(delete(_ROWS).where(_of.number.in_(sent)))
    for each in failed:
        now = _now(_dialect(session))
        told: dict[str, Any] = {"token": None, "error": _printable(each.error)[:_LONGEST_ERROR]}
        told |= {"state": DEAD} if each.again is None else {"due": now + each.again}
        mine = (_of.number == each.claimed.number, _of.token == each.claimed.token)
        await session.execute(update(_ROWS).where(*mine).values(**told))


def _printable(said: str) -> str:
    """PostgreSQL takes no NUL in a text, and terminals take more than they should."""
    return "".join(each if each.isprintable() else " " for each in said)


def _dialect(session: AsyncSession) -> str:
    return session.get_bind().dialect.name


# -- for operators


@dataclass(frozen=True, slots=True)
class Owed:
    """A row of the outbox, without its data."""

    number: int
    destination: str
    state: State
    id: str
    type: str
    subject: str
    time: str
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Which:
    """Which rows are meant: all that fit what is said here; None is any."""

    numbers: Collection[int] | None = None
    destination: str | None = None
    state: State | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a row has to be."""
        said: list[ColumnElement[bool]] = []
        if self.numbers is not None:
            said.append(_of.number.in_(self.numbers))
        if self.destination is not None:
            said.append(_of.destination == self.destination)
        if self.state is not None:
            said.append(_of.state == self.state)
        return said


async def owed(session: AsyncSession, which: Which, *, most: int, after: int = 0) -> list[Owed]:
    """The first `most` of these rows whose numbers are above `after`."""
    columns = [_of[name] for name in Owed.__dataclass_fields__]
    statement = (
        select(*columns).where(*which.conditions(), _of.number > after).order_by(_of.number).limit(most)
    )
    return [Owed(*row) for row in (await session.execute(statement)).all()]


_WAITING = Which(state="pending")


async def owed_elsewhere(
    session: AsyncSession, names: Collection[str], which: Which = _WAITING
) -> dict[str, int]:
    """How many of these are owed to destinations of other names than these, by their names.

    No relay that has these destinations sends them: they wait until the name is there again.
    """
    of_others = select(_of.destination, func.count()).where(
        *which.conditions(), _of.destination.not_in(names)
    )
    counted = of_others.group_by(_of.destination).order_by(_of.destination)
    return {each[0]: each[1] for each in (await session.execute(counted)).all()}


async def retry(session: AsyncSession, which: Which) -> int:
    """Send these as soon as may be, with all attempts before them again; how many they are."""
    fresh = update(_ROWS).values(state=PENDING, attempts=0, due=0.0, token=None)
    return await _changed(session, fresh.where(*which.conditions()))


async def discard(session: AsyncSession, which: Which) -> int:
    """Never send these; how many they were. One that is being sent at this moment may yet arrive."""
    return await _changed(session, delete(_ROWS).where(*which.conditions()))


async def _changed(session: AsyncSession, statement: Any) -> int:
    result = await session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount
