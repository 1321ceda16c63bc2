"""The block around a test: what its units commit is rolled back at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import NullPool, Pool

from .._options import UnitOptions
from .._unit import UnitOfWork
from ..database import Database
from ._connection import OneConnection, look_of
from ._lease import is_about_savepoints, lease_of
from ._probe import Probe


def rolled_back(database: Database, *, run_callbacks: bool = True, wait: float = 10.0) -> RolledBack:
    """Run a test inside one transaction: `with` or `async with`, which give a `Probe`.

    All units of the database share one connection while the block runs, one after the other. COMMIT
    becomes RELEASE SAVEPOINT, ROLLBACK becomes ROLLBACK TO SAVEPOINT, and the end of the block rolls
    everything back. `run_callbacks=False` keeps `on_commit` callbacks from running: they are in
    `probe.callbacks`. `wait` bounds, in seconds, how long a unit waits for another to end.

    Raises CannotRollBack where that cannot be done; the message says what to do.
    """
    return RolledBack(database, run_callbacks, wait)


class RolledBack:
    """The block of `rolled_back()`."""

    def __init__(self, database: Database, run_callbacks: bool, wait: float) -> None:
        self._database = database
        self._probe = Probe(database.adapter.dialect, run_callbacks=run_callbacks)
        self._one = OneConnection(self._probe.faults, self._writer, wait)
        self._engines: list[Engine] = []
        self._listeners: list[tuple[Engine, str, Callable[..., Any]]] = []

    def __enter__(self) -> Probe:
        self._database.tap(self)
        return self._probe

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._one.close()
        finally:
            self._database.tap(None)
            for engine, name, listener in self._listeners:
                event.remove(engine, name, listener)
            for engine in self._engines:
                engine.pool = _original(engine)
        if error is None and (waiting := self._probe.faults.waiting()):
            raise AssertionError(f"this was to go wrong, and did not: {', '.join(waiting)}")

    async def __aenter__(self) -> Probe:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._one.wait_until_free()
        self.__exit__(kind, error, trace)

    # -- what the database tells

    def engine_made(self, engine: Engine) -> None:
        """Let the engine take its connections from the test's; its listeners stay as they are."""
        if isinstance(engine.pool, _TestPool):
            return
        original = engine.pool
        engine.pool = _TestPool(lambda: self._connect(engine, original), original)
        self._engines.append(engine)
        self._listen(engine, "begin", _begin)
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            self._listen(engine, name, self._before_statement)

    def settled(self, unit: UnitOfWork) -> None:
        """A unit has ended."""
        self._probe.settled(unit)

    # -- private

    def _listen(self, engine: Engine, name: str, listener: Callable[..., Any]) -> None:
        event.listen(engine, name, listener)
        self._listeners.append((engine, name, listener))

    def _writer(self, engine: Engine) -> tuple[Engine, Pool]:
        """The engine for writing that is of the same kind as this one; itself, if there is none."""
        try:
            writer = self._database.engine(UnitOptions(), asynchronous=engine.dialect.is_async)
        except ValueError:
            writer = engine
        sync_engine: Engine = getattr(writer, "sync_engine", writer)
        return sync_engine, _original(sync_engine)

    def _connect(self, engine: Engine, original: Pool) -> Any:
        """What the engine's pool takes for a new connection."""
        dialect = engine.dialect
        if dialect.is_async:
            connect = partial(self._one.lease_async, engine, original)
            connection: Any = dialect.connect(async_creator_fn=connect)
        else:
            connection = self._one.lease(engine, original)
        if look_of(engine).autocommit:
            dialect.set_isolation_level(connection, "AUTOCOMMIT")
        return connection

    def _before_statement(self, cursor: Any, statement: str, *others: Any) -> bool:
        """Let go wrong what shall; True if the text was COMMIT or the like, and is done."""
        connection: Connection = others[-1].root_connection
        lease = lease_of(connection)
        if lease is None:
            return False
        fault = None if is_about_savepoints(statement) else self._probe.faults.at_statement()
        if fault is not None:
            if lease.open and not fault.drops:
                lease.wire.perform(lease.wire.spoil())
            with _as_the_driver_says(connection):
                lease.raise_fault(fault)
        steps = lease.by_text(statement)
        if steps is None:
            return False
        with _as_the_driver_says(connection):
            lease.wire.perform(steps)
        return True


class _TestPool(NullPool):
    """Asks for the connection anew each time: what it gets is a lease."""

    def __init__(self, creator: Callable[[], Any], original: Pool) -> None:
        super().__init__(creator, reset_on_return=None, dialect=original._dialect)
        self.original = original

    def dispose(self) -> None:
        """The app is done with its engine, and may have had connections before the test."""
        self.original.dispose()
        self.original = self.original.recreate()

    def recreate(self) -> _TestPool:
        """Itself: nothing of it has to be made anew."""
        return self


def _original(engine: Engine) -> Pool:
    return engine.pool.original if isinstance(engine.pool, _TestPool) else engine.pool


def _begin(connection: Connection) -> None:
    """Begin where the driver does so by itself, unseen: a stock SQLite engine of the user's."""
    lease = lease_of(connection)
    if lease is not None and lease.wire.begins_unseen():
        lease.wire.perform(lease.begin())


@contextmanager
def _as_the_driver_says(connection: Connection) -> Generator[None]:
    """Raise the driver's exception as SQLAlchemy's adapter for the driver would."""
    try:
        yield
    except Exception as error:
        adapter: Any = connection.connection.dbapi_connection
        if hasattr(adapter, "_handle_exception"):
            adapter._handle_exception(error)
        raise
