"""The one connection of a test: opened when a unit first needs it, and given to one unit at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection, StaticPool

from .._context import unit_around
from .._unit import UnitOfWork
from ..engines.writer_pool import Turn
from ..errors import WouldDeadlock
from ._faults import Faults
from ._home import Home
from ._lease import Lease, Wire

_DRIVERS = {"pysqlite": "._sqlite", "aiosqlite": "._sqlite", "psycopg": "._psycopg", "asyncpg": "._asyncpg"}
"""The module of each driver; two with the same one can work on the same connection."""


class CannotRollBack(RuntimeError):
    """The test cannot be run inside one transaction; the message says what to do."""


@dataclass(frozen=True)
class Look:
    """What a real connection of an engine is like."""

    read_only: bool
    autocommit: bool
    adapters: Any


_looks: WeakKeyDictionary[Engine, Look] = WeakKeyDictionary()


def look_of(engine: Engine) -> Look:
    """What was seen when the engine was first used."""
    return _looks[engine]


@dataclass(frozen=True)
class Holder:
    """Who has the connection, or wants it."""

    unit: UnitOfWork | None
    task: asyncio.Task[Any] | None

    @classmethod
    def here(cls) -> Holder:
        """The running code."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        return cls(unit_around(), task)

    @property
    def name(self) -> str:
        """What an error calls it."""
        return "a unit" if self.unit is None else self.unit.name

    def waits_for_itself(self, holder: Holder) -> bool:
        """Whether the holder cannot end before what runs here has.

        A task that starts another does not always wait for it; a thread knows of a unit only from code
        that waits for the thread.
        """
        if self.task is not None and holder.task is not None:
            return self.task is holder.task
        unit = self.unit
        while unit is not None:
            if unit is holder.unit:
                return True
            unit = unit._outer  # pyright: ignore[reportPrivateUsage]  # nobody else asks for it
        return False


class OneConnection:
    """The connection, its transaction, and the queue of the units that want it."""

    def __init__(self, faults: Faults, writer: Callable[[Engine], tuple[Engine, Pool]], wait: float) -> None:
        self._faults = faults
        self._writer = writer
        self._wait = wait
        self._turn = Turn()
        self._holder: Holder | None = None
        self._lease: Lease | None = None
        self._home = Home()
        self._real: Any = None
        self._give_up_real: Callable[[], object] | None = None
        self._asynchronous = False
        self._wire: Wire | None = None
        self._driver = ""
        self._lost = False

    def lease(self, engine: Engine, pool: Pool) -> Any:
        """A connection for a sync engine."""
        me = self._ask()
        try:
            self._turn.take(self._wait)
        except TimeoutError:
            raise self._busy(me) from None
        try:
            self._holder = me
            wire, look = self._prepare(engine, pool)
            return wire.connect(self._new_lease(wire, look), look.adapters)
        except BaseException:
            self._pass_on()
            raise

    async def lease_async(self, engine: Engine, pool: Pool, *_: Any, **__: Any) -> Any:
        """What an async engine's driver calls a connection."""
        me = self._ask()
        try:
            await self._turn.take_async(self._wait)
        except TimeoutError:
            raise self._busy(me) from None
        try:
            self._holder = me
            wire, look = await asyncio.to_thread(self._prepare, engine, pool)
            return await wire.connect_async(self._new_lease(wire, look), look.adapters)
        except BaseException:
            self._pass_on()
            raise

    def close(self) -> None:
        """Roll back and close; CannotRollBack if a unit is still open."""
        holder = self._holder
        try:
            self._turn.take(0 if _in_event_loop() else self._wait)
        except TimeoutError:
            self._shut()
            name = "a unit" if holder is None else holder.name
            raise CannotRollBack(
                f"{name} is still open at the end of the test; what it wrote is rolled back. End it first"
            ) from None
        self._shut()

    async def wait_until_free(self) -> None:
        """Wait for a unit that is on its way out; `close` says so if it is not."""
        try:
            await self._turn.take_async(self._wait)
        except TimeoutError:
            return
        self._turn.release()

    def _ask(self) -> Holder:
        me = Holder.here()
        holder = self._holder
        if holder is not None and me.waits_for_itself(holder):
            raise WouldDeadlock(
                f"{me.name}: a test has one connection, {holder.name} has it, and cannot end before this "
                f"unit does. End the one before you begin the other"
            )
        return me

    def _busy(self, me: Holder) -> WouldDeadlock:
        holder = self._holder
        return WouldDeadlock(
            f"{me.name}: a test has one connection, and {'a unit' if holder is None else holder.name} did "
            f"not give it back within {self._wait:g} seconds. Is it a unit of the test itself, around the "
            f"request? End it first. (`wait=` changes the time.)"
        )

    def _prepare(self, engine: Engine, pool: Pool) -> tuple[Wire, Look]:
        """Look at the engine's real connections, and open the one of the test; blocks."""
        if self._lost:
            raise CannotRollBack(
                "the transaction of the test has ended: COMMIT or ROLLBACK reached the database unseen, or "
                "an error took the whole transaction. Run such a test on a database of its own"
            )
        asynchronous = engine.dialect.is_async
        driver = engine.dialect.driver
        if driver not in _DRIVERS:
            raise CannotRollBack(f"uow.testing knows {', '.join(_DRIVERS)}, and not {driver!r}")
        if engine not in _looks:
            self._run(asynchronous, partial(_look, engine, pool))
        if self._wire is None:
            writer, its_pool = self._writer(engine)
            if writer not in _looks:
                self._run(asynchronous, partial(_look, writer, its_pool))
            self._run(asynchronous, partial(self._connect, its_pool))
            self._asynchronous = asynchronous
            self._driver = driver
            self._wire = self._wire_of(driver, writer)
        if _DRIVERS[driver] != _DRIVERS[self._driver]:
            raise CannotRollBack(
                f"the transaction of this test is on a connection of {self._driver}; a session of the other "
                f"kind has one of {driver}, which does not see it. Let such a test use one kind of session, "
                f'or a driver that serves both: Database("postgresql+psycopg://...")'
            )
        return self._wire, _looks[engine]

    def _connect(self, pool: Pool) -> None:
        lasting = isinstance(pool, StaticPool)  # its connection may be the database, if that is in memory
        connection = (pool if lasting else pool.recreate()).connect()
        self._real = connection.dbapi_connection
        if lasting:
            self._give_up_real = connection.close
        else:
            connection.detach()  # the pool of a writer has room for no other
            self._give_up_real = self._real.close

    def _wire_of(self, driver: str, writer: Engine) -> Wire:
        module: Any = import_module(_DRIVERS[driver], __package__)
        wire: Wire = module.wire(writer.dialect.get_driver_connection(self._real), self._home)
        return wire

    def _new_lease(self, wire: Wire, look: Look) -> Lease:
        self._lease = Lease(wire, self._faults, read_only=look.read_only, over=self._take_back)
        return self._lease

    def _take_back(self) -> None:
        self._lost = self._lost or self._wire is None or not self._wire.in_transaction()
        self._pass_on()

    def _pass_on(self) -> None:
        self._holder = self._lease = None
        self._turn.release()

    def _run(self, asynchronous: bool, work: Callable[[], object]) -> None:
        if asynchronous:
            self._home.run_sync(work)
        else:
            work()

    def _shut(self) -> None:
        wire, self._wire = self._wire, None
        self._lost = True
        if self._lease is not None:
            self._lease.abandon()
        try:
            if wire is not None and wire.in_transaction():
                wire.close()
        finally:
            if self._give_up_real is not None:
                self._run(self._asynchronous, self._give_up_real)
            self._home.close()


def _in_event_loop() -> bool:
    """Whether waiting here would stop the units of this loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def _connected(pool: Pool) -> Generator[PoolProxiedConnection]:
    fresh = pool.recreate()
    try:
        connection = fresh.connect()
        try:
            yield connection
        finally:
            connection.close()
    finally:
        fresh.dispose()


def _look(engine: Engine, pool: Pool) -> None:
    """Connect once, as the app would: what its listeners set up, and refuse, is set up and refused."""
    postgresql = engine.dialect.name == "postgresql"
    with _connected(pool) as connection:
        dbapi: Any = connection.dbapi_connection
        cursor = dbapi.cursor()
        cursor.execute("SHOW default_transaction_read_only" if postgresql else "PRAGMA query_only")
        read_only = cursor.fetchone()[0] in ("on", 1)
        cursor.close()
        dbapi.rollback()
        autocommit = postgresql and engine.dialect.detect_autocommit_setting(dbapi)
        adapters = getattr(connection.driver_connection, "adapters", None)
    _looks[engine] = Look(read_only, autocommit, adapters)
