"""Recording events in the unit that publishes them, just before its COMMIT.

A number is given when its row is written, and COMMITs need not come in the order of the numbers. So the rows
of a unit are written as the last thing before COMMIT, under a lock for each of their subjects that ends with
the transaction: of two units that publish on one subject, the second gets its numbers when what the first has
done can be seen. The locks are taken in one order and nothing else is waited for under them, so that they
cause no deadlock. On SQLite the one writer is lock enough.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import blake2b
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from sqlalchemy import Connection, Engine, MetaData, event, insert
from sqlalchemy.orm import Session, SessionTransaction

from .._connection import run
from .._context import current_unit
from .._sessions import UnitSession
from .._unit import UnitOfWork
from .._watch import work_of
from ..errors import MixedSessions, ReadOnlyUnitOfWork, UnitOfWorkClosed
from ._declare import declared
from ._message import Destination
from ._table import CHANNEL, NAME, PENDING, table

if TYPE_CHECKING:
    from ..database import Database

_KEY = "uow_outbox"
_COMMITTING = "uow_outbox_committing"
_SAVEPOINTS = "uow_outbox_savepoints"


class Outbox:
    """The events that the units of a database publish, and the destinations that they are owed to.

    Made once for a database; `publish()` finds it by the unit. `source` is the attribute of CloudEvents: a
    URI reference that names who speaks. An event whose data are longer than `max_size` bytes is refused.
    Where there are no destinations nothing is recorded.

    Raises ValueError for two destinations of one name, a name that is none, an empty source, and a database
    that has an outbox.
    """

    def __init__(
        self,
        database: Database,
        destinations: Sequence[Destination],
        *,
        source: str,
        max_size: int = 64 * 1024,
    ) -> None:
        names = [each.name for each in destinations]
        for name in names:
            if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or names.count(name) > 1:
                raise ValueError(f"{name!r} is the name of two, or none: 1 to {_LONGEST_NAME} characters")
        if not source:
            raise ValueError("source is empty: name who speaks, such as /inventory")
        self.database = database
        self.destinations = tuple(destinations)
        self.names = names
        self.source = source
        self.max_size = max_size
        self._rung = -math.inf
        if _KEY in vars(database):
            raise ValueError(
                f"{database!r} has an outbox: what is published would be owed to one of them only"
            )
        vars(database)[_KEY] = self  # it is the database's, and gone with it

    def wakes_relays(self) -> bool:
        """Whether what is written now has to wake the relays up: not if the last did so just now.

        A NOTIFY holds up every other COMMIT of the whole cluster that has one, until it is on the disk.
        """
        now = monotonic()
        if now - self._rung < _PAUSE:
            return False
        self._rung = now
        return True


_LONGEST_NAME = 64
_PAUSE = 0.05  # seconds between two NOTIFY of a process: relays look again after twice that


def publish(event: object) -> str:
    """Record an event in the running unit, and return its id: it leaves if and only if the unit commits.

    Its class was declared with `@event(...)`. Its data are taken now; what is changed later does not count.
    It asks for no session, so that a unit may get one of either kind after it.

    Raises NoUnitOfWork outside a unit, UnitOfWorkClosed after it was settled, ReadOnlyUnitOfWork where it
    only reads; TypeError for an event that was not declared or cannot be written as JSON, ValueError for one
    that is too large or has no subject; LookupError where the database has no `Outbox`.
    """
    unit = current_unit()
    what = declared(event)
    outbox: Outbox | None = vars(unit.database).get(_KEY)
    if outbox is None:
        raise LookupError(
            f"{unit.name}: its database has no outbox: write Outbox(database, [...], source=...)"
        )
    if unit.options.read_only:
        raise ReadOnlyUnitOfWork(f"{unit.name}: a read-only unit keeps nothing, so it has nothing to publish")
    data = what.dump(event)
    if (size := len(data.encode())) > outbox.max_size:
        raise ValueError(
            f"{what.type} has {size} bytes of data, more than {outbox.max_size}: publish what leads to them"
        )
    subject, made = what.subject_of(event), str(uuid4())
    _keep(unit, _Row(made, what.type, subject, data, _lane(subject), _now()), outbox)
    return made


@dataclass(slots=True)
class _Row:
    id: str
    type: str
    subject: str
    data: str
    lane: int
    time: str
    savepoint: SessionTransaction | None = None
    """The innermost savepoint that it was published in and that is open yet."""


@dataclass(slots=True)
class _Buffer:
    """The events of a unit that are not written yet, in the order of publishing."""

    outbox: Outbox
    rows: list[_Row] = field(default_factory=list[_Row])


class _Early:
    """What is published before the unit has a session: its kind is for those to say who ask for one."""

    __slots__ = ("_asynchronous", "buffer")

    def __init__(self, unit: UnitOfWork, outbox: Outbox) -> None:
        self.buffer = _Buffer(outbox)
        self._asynchronous = _on_loop()
        engine = partial(unit.database.engine, unit.options)
        try:
            engine(asynchronous=self._asynchronous)
        except Exception:  # if there is none of the other kind either, who publishes is told, not COMMIT
            self._asynchronous = not self._asynchronous
            engine(asynchronous=self._asynchronous)

    def __call__(self, unit: UnitOfWork) -> None:
        """Give it to the session before that is used; for COMMIT one is made if nobody has asked for it."""
        session = _session_of(unit, asynchronous=self._asynchronous)
        session.info[_KEY] = self.buffer
        session.work.must_commit = True  # also without a connection by then
        unit.on_opened = None


def _lane(subject: str) -> int:
    """A number of 63 bits for a subject, also that of its lock. Subjects that share one take turns."""
    return int.from_bytes(blake2b(subject.encode(), digest_size=8, person=b"uow.outbox").digest()) >> 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _keep(unit: UnitOfWork, row: _Row, outbox: Outbox) -> None:
    with unit.database.opening:  # nobody makes the session or settles meanwhile
        is_early = unit.is_open and unit._work is None  # pyright: ignore[reportPrivateUsage]  # to ask for the session is to make it
        if is_early and outbox.names:
            early = unit.on_opened
            if not isinstance(early, _Early):
                early = unit.on_opened = _Early(unit, outbox)
            early.buffer.rows.append(row)
    if not is_early:
        _record(_session_of(unit, asynchronous=_on_loop()), row, outbox)


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _session_of(unit: UnitOfWork, *, asynchronous: bool) -> UnitSession:
    """The session that the unit has, or else one of this kind."""
    first, second = (_async, _sync) if asynchronous else (_sync, _async)
    try:
        return first(unit)
    except (MixedSessions, ValueError):  # the second: among engines of one's own there is none for it
        return second(unit)


def _sync(unit: UnitOfWork) -> UnitSession:
    return cast("UnitSession", unit.sync_session)


def _async(unit: UnitOfWork) -> UnitSession:
    return cast("UnitSession", unit.session.sync_session)


def _record(session: UnitSession, row: _Row, outbox: Outbox) -> None:
    work = session.work
    work.enter_open()  # as `add()`: it cannot wait for another task's savepoint to end
    try:
        if work.commit_sent:
            raise UnitOfWorkClosed(
                f"{work.name}: its COMMIT was sent: what is published now would not be in it"
            )
        if not outbox.names:
            return
        buffer: _Buffer | None = session.info.get(_KEY)
        if buffer is None:
            buffer = session.info[_KEY] = _Buffer(outbox)
            for connection in work.connections:
                connection.__dict__[_KEY] = buffer
        written_at_once = _COMMITTING in session.info  # a listener's that came after ours
        if not written_at_once:  # else it is the row that a savepoint undoes
            row.savepoint = session.get_nested_transaction()
        buffer.rows.append(row)
        work.must_commit = True  # also without a connection by then
        if written_at_once:
            _write(session, buffer)
    finally:
        work.give()


# -- what the session and its connection tell


@event.listens_for(UnitSession, "after_begin")
def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if (buffer := session.info.get(_KEY)) is not None:
        connection.__dict__.setdefault(_KEY, buffer)


@event.listens_for(UnitSession, "before_commit")
def _before_commit(session: Session) -> None:
    """Write the events, in the unit's own COMMIT; that of a savepoint is told here as well."""
    if session.in_nested_transaction():
        return
    session.info[_COMMITTING] = True
    buffer: _Buffer | None = session.info.get(_KEY)
    if buffer is not None:
        _write(session, buffer)


@event.listens_for(UnitSession, "after_commit")
def _after_commit(session: Session) -> None:
    """A savepoint was released: its events are those of what is around it. None of another one is kept."""
    buffer: _Buffer | None = session.info.get(_KEY)
    released = session.get_nested_transaction()
    if buffer is None or released is None:
        return
    around = released.parent
    while around is not None and not around.nested:
        around = around.parent
    for row in buffer.rows:
        if row.savepoint is released:
            row.savepoint = around


@event.listens_for(Engine, "savepoint")
def _savepoint(connection: Connection, name: str | None) -> None:
    """Note how many rows there are. Its name is not known yet: the number in it is the place in the list."""
    buffer: _Buffer | None = connection.__dict__.get(_KEY)
    connection.__dict__.setdefault(_SAVEPOINTS, []).append(0 if buffer is None else len(buffer.rows))


@event.listens_for(Engine, "rollback_savepoint")
def _rollback_savepoint(connection: Connection, name: str, context: object) -> None:
    """Forget what came after it, also where the savepoint was the connection's own and not the session's."""
    buffer: _Buffer | None = connection.__dict__.get(_KEY)
    if buffer is not None:
        number = int(name.rpartition("_")[2])
        del buffer.rows[connection.__dict__[_SAVEPOINTS][number - 1] :]


@event.listens_for(Engine, "release_savepoint")
def _release_savepoint(connection: Connection, name: str, context: object) -> None:
    """Where an error was swallowed inside, the unit undoes it instead, and nobody tells of a rollback."""
    work = work_of(connection)
    if work is not None and work.failure is not None:
        _rollback_savepoint(connection, name, context)


# -- writing

# Materialized, and counted below: so the locks are had before a number is drawn for the first row. An INSERT
# from a SELECT with an order numbers its rows in that order.
_INSERT = (
    f"WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock(lane)"
    f" FROM unnest(CAST({{locks}} AS bigint[])) WITH ORDINALITY AS l(lane, place) ORDER BY place),"
    f" told AS MATERIALIZED ({{told}})"
    f" INSERT INTO {NAME} (destination, state, lane, id, type, subject, time, data, attempts, due)"
    f" SELECT d.name, '{PENDING}', e.lane, e.id, e.type, e.subject, e.time, e.data, 0, 0"
    f" FROM (SELECT (SELECT count(*) FROM locked) + (SELECT count(*) FROM told) AS number OFFSET 0) AS first,"
    f" unnest(CAST({{lanes}} AS bigint[]), CAST({{ids}} AS text[]), CAST({{types}} AS text[]),"
    f" CAST({{subjects}} AS text[]), CAST({{times}} AS text[]), CAST({{data}} AS text[]))"
    f" WITH ORDINALITY AS e(lane, id, type, subject, time, data, place),"
    f" unnest(CAST({{names}} AS text[])) AS d(name)"
    f" WHERE first.number > 0 ORDER BY e.place"
)
_PARAMETERS = ("locks", "lanes", "ids", "types", "subjects", "times", "data", "names")
_IN_ORDER = attrgetter("lane", "lane", "id", "type", "subject", "time", "data")  # of a row, all but the last
_TOLD = {True: f"SELECT pg_notify('{CHANNEL}', '')", False: "SELECT 1"}
_TABLE = table(MetaData())


def _write(session: Session, buffer: _Buffer) -> None:
    """Write what is to be kept; a row that was published in a savepoint is there once that was released."""
    rows = [row for row in buffer.rows if row.savepoint is None]
    buffer.rows.clear()
    if not rows:
        return
    connection = session.connection()
    names = buffer.outbox.names
    if connection.dialect.name == "postgresql":
        numbered = connection.dialect.paramstyle.startswith("numeric")
        alone = len(rows) == len(names) == 1
        statement = _spelt(alone=alone, numbered=numbered, rings=buffer.outbox.wakes_relays())
        run(connection, statement, (*_IN_ORDER(rows[0]), names[0]) if alone else _arrays(rows, names))
        return
    values = [
        {"destination": name, "state": PENDING, "attempts": 0, "due": 0.0, **_values(row)}
        for row in rows
        for name in names
    ]
    connection.execute(insert(_TABLE), values)


@cache
def _spelt(*, alone: bool, numbered: bool, rings: bool) -> str:
    """The statement with the driver's placeholders; SQLAlchemy's compiler would be a third of its cost.

    An event that is alone comes without arrays: asyncpg takes a while to see whether something is one.
    """
    marks = [f"${number}" if numbered else "%s" for number in range(1, len(_PARAMETERS) + 1)]
    arrays = [f"ARRAY[{mark}]" if alone else mark for mark in marks]
    return _INSERT.format(told=_TOLD[rings], **dict(zip(_PARAMETERS, arrays, strict=True)))


def _arrays(rows: list[_Row], names: Sequence[str]) -> tuple[Sequence[Any], ...]:
    """The values of `_PARAMETERS`, in their order."""
    locks, *columns = zip(*map(_IN_ORDER, rows), strict=True)
    return (sorted({*locks}), *map(list, columns), list(names))


def _values(row: _Row) -> dict[str, Any]:
    names = ("lane", "id", "type", "subject", "time", "data")
    return {name: getattr(row, name) for name in names}
