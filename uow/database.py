"""The engines of one database: a writer and a read-only reader, for async and for sync sessions."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from ._asking import Asking
from ._connection import use_unit_connections
from ._events import listen
from ._new_unit import NewUnit
from ._options import UnitOptions, checked_isolation
from ._sessions import UnitAsyncSession, UnitSession
from ._settling import HandlersSettle, HandlersSettling
from ._telling import Tap, Telling
from ._unit import UnitOfWork
from ._watch import Watch
from .engines import Adapter, adapter_for
from .observe import UnitObserver
from .problems import Condition

__all__ = ["Database"]

logger = logging.getLogger("uow")

_Key = tuple[str, bool]


class Database:
    """One database, reached through engines that are made on first use.

    `url` is a plain SQLAlchemy URL ("sqlite:///items.db", "postgresql://user@host/name"), or one that
    names its driver. `options` are the keywords of `sqlalchemy.create_engine`; `pool_size` and the like
    count for each engine. `settle_timeout` bounds, in seconds, how long a request waits for its COMMIT or
    ROLLBACK before the connection is thrown away. `observer` is told what the units do. `session_class`, a
    subclass of `UnitSession`, and `async_session_class` are those of your own that the units shall use.
    `handlers_settle="flush"` lets code move over step by step: its `commit()` flushes, its `begin()` sets a
    savepoint, and each place that does so is logged once; "refuse" raises SettleRefused. With `outcome`, a
    `uow.outcome.TrueOutcome`, the database is asked what became of a COMMIT whose answer was lost. Where
    `max_waiting` units wait for a connection, the next one is refused at once: 503 with Retry-After.

    Nothing is connected until a unit's first SQL. Raises ValueError for a dialect without an adapter, and
    TypeError for a `session_class` without `UnitSession`.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        settle_timeout: float = 10.0,
        observer: UnitObserver | None = None,
        session_class: type[UnitSession] = UnitSession,
        async_session_class: type[AsyncSession] = UnitAsyncSession,
        handlers_settle: HandlersSettle = "refuse",
        outcome: Asking | None = None,
        max_waiting: int | None = None,
        **options: Any,
    ) -> None:
        self._set_up(make_url(url), settle_timeout, observer, options)
        self._use_sessions(session_class, async_session_class, handlers_settle)
        self.outcome = outcome
        self.max_waiting = max_waiting

    @classmethod
    def from_engines(
        cls,
        *,
        writer: AsyncEngine | None = None,
        reader: AsyncEngine | None = None,
        sync_writer: Engine | None = None,
        sync_reader: Engine | None = None,
        settle_timeout: float = 10.0,
        observer: UnitObserver | None = None,
        session_class: type[UnitSession] = UnitSession,
        async_session_class: type[AsyncSession] = UnitAsyncSession,
        handlers_settle: HandlersSettle = "refuse",
        outcome: Asking | None = None,
        max_waiting: int | None = None,
    ) -> Self:
        """The database behind engines of your own.

        What makes a writer safe on SQLite and a reader read-only is then yours to set up. A missing
        reader is the writer: nothing refuses a write in a GET then, and it is committed. Asking for a
        kind of session that has no engine raises ValueError.
        """
        given: dict[_Key, AsyncEngine | Engine | None] = {
            ("writer", True): writer,
            ("reader", True): reader or writer,
            ("writer", False): sync_writer,
            ("reader", False): sync_reader or sync_writer,
        }
        engines = {key: engine for key, engine in given.items() if engine is not None}
        if not engines:
            raise ValueError("from_engines() needs at least one engine")
        self = cls.__new__(cls)
        self._set_up(next(iter(engines.values())).url, settle_timeout, observer, {})
        self._use_sessions(session_class, async_session_class, handlers_settle)
        self.outcome = outcome
        self.max_waiting = max_waiting
        self.own = False
        # Of each kind that is there: a GET that reads through its writer has something to commit.
        self.has_reader = all(
            engine is not engines.get(("writer", key[1]))
            for key, engine in engines.items()
            if key[0] == "reader"
        )
        self._engines = dict(engines)
        for sync_engine in {id(e): e for e in map(_sync_engine, engines.values())}.values():
            listen(sync_engine, self.adapter, observer)
        return self

    def _set_up(
        self, url: URL, settle_timeout: float, observer: UnitObserver | None, options: dict[str, Any]
    ) -> None:
        self.url = url
        self.adapter: Adapter = adapter_for(url.get_backend_name())
        self.settle_timeout = settle_timeout
        self.limiter = anyio.CapacityLimiter(math.inf)
        self.own = self.has_reader = True
        self._options = options
        self.telling = Telling(observer)
        self._making = threading.Lock()
        self._engines: dict[_Key, AsyncEngine | Engine] = {}
        self._variants: dict[tuple[str, bool, str], AsyncEngine | Engine] = {}
        self.opening = threading.RLock()  # taken for moments, to make a unit or its session once
        self._open: set[UnitOfWork] = set()
        self.waiting: set[Watch] = set()
        self._drained: Future[None] | None = None

    def _use_sessions(
        self, session_class: type[UnitSession], async_class: type[AsyncSession], settle: HandlersSettle
    ) -> None:
        if not issubclass(session_class, UnitSession):  # pyright: ignore[reportUnnecessaryIsInstance]  # not everybody has a type checker
            raise TypeError(
                f"session_class={session_class.__name__} has no UnitSession among its bases: write "
                f"class {session_class.__name__}(UnitSession, ...)"
            )
        if settle not in ("refuse", "flush"):
            raise ValueError(f'handlers_settle={settle!r} is neither "refuse" nor "flush"')
        self.session_class = session_class
        self.async_session_class = async_class
        self._handlers_settle = HandlersSettling(flush=settle == "flush")

    def __repr__(self) -> str:
        return f"<Database {self.url.set(query={}).render_as_string()}>"  # drivers take a password there, too

    def new_unit(
        self,
        *,
        read_only: bool = False,
        isolation: str | None = None,
        snapshot: bool = False,
        name: str | None = None,
    ) -> NewUnit:
        """A unit of its own, independent of any around it: `async with` (or `with` for a sync session).

        The block's end commits and an exception rolls back. `read_only`, `isolation` and `snapshot` are
        those of `unit_options`; `name` is what the log and the errors call it. Raises ValueError for an
        isolation level that does not exist.
        """
        return NewUnit(
            self, UnitOptions(read_only, checked_isolation(isolation), frozenset(), snapshot), name
        )

    async def ping(self) -> None:
        """Return if the database answers; raise SQLAlchemy's exception, or the driver's, if not."""
        async with self.new_unit(read_only=True, name="ping()") as unit:
            await unit.session.execute(text("SELECT 1"))

    def ping_sync(self) -> None:
        """The same through the sync driver."""
        with self.new_unit(read_only=True, name="ping_sync()") as unit:
            unit.sync_session.execute(text("SELECT 1"))

    async def dispose(self) -> None:
        """Wait for the units that are open, at most `settle_timeout`, and close all connections."""
        if self._open:
            self._drained = self._drained or Future()  # units of threads and other loops end here as well
            await asyncio.wait((asyncio.wrap_future(self._drained),), timeout=self.settle_timeout)
        for engine in self._forget_engines():
            if isinstance(engine, AsyncEngine):
                await engine.dispose()
            else:
                await anyio.to_thread.run_sync(engine.dispose, limiter=self.limiter)
        self.adapter.dispose()

    def dispose_sync(self) -> None:
        """Close the connections of the sync engines; those of async ones need `await dispose()`."""
        for engine in self._forget_engines():
            if isinstance(engine, Engine):
                engine.dispose()
            else:
                engine.sync_engine.dispose(close=False)
        self.adapter.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dispose_sync()

    def condition(self, error: BaseException) -> Condition | None:
        """What an exception means to a unit of this database; None for one that it has not caused."""
        return self.adapter.condition(error)

    # -- the rest is for the units

    @property
    def reads_need_transaction(self) -> bool:
        """Whether a reader of ours is in autocommit and leaves it for streams and savepoints."""
        return self.own and self.adapter.needs_transaction_to_read()

    @property
    def begins_visibly(self) -> bool:
        """Whether the driver of a writer has a transaction open as soon as a statement has run."""
        return self.own or not self.adapter.one_writer

    def engine(self, options: UnitOptions, *, asynchronous: bool) -> Any:
        """The engine for a unit with these options: AsyncEngine or Engine, as asked."""
        if options.read_only:
            if options.snapshot:
                return self._variant("reader", asynchronous, "snapshot")
            return self._engine("reader", asynchronous)
        if options.isolation is not None:
            return self._variant("writer", asynchronous, options.isolation)
        return self._engine("writer", asynchronous)

    def transactional_reader(self, session: UnitSession) -> Engine:
        """The sync engine of the reader inside a transaction, of the kind that the session has."""
        asynchronous = session.get_bind().dialect.is_async
        return _sync_engine(self._variant("reader", asynchronous, "transaction"))

    def handler_settles(self, name: str, call: str) -> None:
        """A handler has tried to settle its unit: raise SettleRefused, or warn and let it flush instead."""
        self._handlers_settle.tried(name, call)

    def opened(self, unit: UnitOfWork) -> None:
        """Count a unit that has a session: `dispose()` waits for it."""
        self._open.add(unit)
        self.telling.opened(unit)

    def closed(self, unit: UnitOfWork) -> None:
        """Count it no more."""
        self._open.discard(unit)
        drained = self._drained
        if drained is not None and not self._open:
            self._drained = None
            with suppress(InvalidStateError):  # two threads may end the last two units at once
                drained.set_result(None)

    def tap(self, tap: Tap | None) -> None:
        """Tell `tap` of each engine, first of those that are there, and of each unit that ends."""
        if tap is not None and self.telling.tap is not None:
            raise RuntimeError("this database is tapped already")
        self.telling.tap = tap
        if tap is not None:
            for engine in {id(e): e for e in map(_sync_engine, self._engines.values())}.values():
                tap.engine_made(engine)

    def _engine(self, role: str, asynchronous: bool) -> AsyncEngine | Engine:
        engine = self._engines.get((role, asynchronous))
        if engine is None:
            with self._making:
                engine = self._engines.get((role, asynchronous)) or self._make(role, asynchronous)
                self._engines[role, asynchronous] = engine
        return engine

    def _make(self, role: str, asynchronous: bool) -> AsyncEngine | Engine:
        if not self.own:
            kind = "an async" if asynchronous else "a sync"
            raise ValueError(f"this database was made from engines, and {kind} {role} is not among them")
        read_only = role == "reader"
        url = self.adapter.resolve(self.url)
        try:
            url, options = self.adapter.engine_arguments(
                url, self._options, asynchronous=asynchronous, read_only=read_only
            )
            engine = create_async_engine(url, **options) if asynchronous else create_engine(url, **options)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{url.drivername} needs {error.name!r}: pip install 'uow[{self.adapter.dialect}]'",
                name=error.name,
            ) from error
        sync_engine = _sync_engine(engine)
        use_unit_connections(sync_engine)
        if read_only:
            self.adapter.prepare_reader(sync_engine)
        else:
            self.adapter.prepare_writer(sync_engine)
        listen(sync_engine, self.adapter, self.telling.observer)
        if self.telling.tap is not None:
            self.telling.tap.engine_made(sync_engine)
        return engine

    def _variant(self, role: str, asynchronous: bool, what: str) -> AsyncEngine | Engine:
        """The same engine, and the same pool, for transactions of another kind."""
        key = (role, asynchronous, what)
        variant = self._variants.get(key)
        if variant is None:
            engine = _sync_engine(self._engine(role, asynchronous))
            if role == "writer":
                changed = self.adapter.writer_at(engine, what)
            else:
                changed = self.adapter.transactional_reader(engine, snapshot=what == "snapshot")
            if self.own:
                use_unit_connections(changed)
            variant = self._variants[key] = AsyncEngine(changed) if asynchronous else changed
        return variant

    def _forget_engines(self) -> list[AsyncEngine | Engine]:
        """Take the engines of ours out of use; a later unit makes new ones."""
        if not self.own:
            return []
        engines = list(self._engines.values())
        self._engines.clear()
        self._variants.clear()
        return engines


def _sync_engine(engine: AsyncEngine | Engine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine
