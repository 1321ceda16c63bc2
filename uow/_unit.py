"""The unit of work: opened once, settled once, and what follows from how it was settled."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ._asking import Asking, learn, learn_sync
from ._callbacks import Callback, run_callbacks, run_callbacks_sync
from ._context import unit_around
from ._deadlines import Clock
from ._greenlets import spawn
from ._messages import closed, commit_unanswered, mixed_sessions, send_refused, would_deadlock
from ._options import UnitOptions
from ._sessions import UnitSession
from ._shield import Unfinished, finish
from ._transaction import UnitTransaction
from ._watch import Phase
from .errors import ConcurrentUse, OutcomeUnknown
from .problems import Condition

if TYPE_CHECKING:
    from .database import Database

Outcome = Literal["committed", "rolled_back", "unknown"]

_HURRY = 1.0  # seconds for a ROLLBACK after the deadline; then the connection is thrown away

logger = logging.getLogger("uow")


class UnitOfWork:
    """One piece of work on a database that is committed or rolled back exactly once.

    The middleware makes one for each request, `new_unit()` makes one in the code. It costs nothing until
    its session is asked for.
    """

    __slots__ = (
        "_async_session", "_callbacks", "_connected", "_done", "_failure", "_given_options", "_outer",
        "_phase", "_resolve", "_sync_only", "_sync_session", "_work", "asking", "attempt", "clock",
        "database", "hurries", "is_request", "is_rollback_only", "may_retry", "name", "on_opened", "outcome",
    )  # fmt: skip

    database: Database
    name: str
    """What the log and the errors call this unit: "POST /items/" for a request."""
    is_request: bool
    """Whether the middleware opened it for a request."""
    attempt: int
    """Which attempt of its request it belongs to, from 1."""
    outcome: Outcome | None
    """How it ended: "committed", "rolled_back", "unknown"; None while it is open."""

    def __init__(
        self,
        database: Database,
        name: str,
        options: Callable[[], UnitOptions],
        *,
        is_request: bool = False,
        sync_only: bool = False,
        outer: UnitOfWork | None = None,
    ) -> None:
        self.database = database
        self.asking: Asking | None = database.outcome  # about a COMMIT whose answer was lost
        self.name = name
        self.is_request = is_request
        self.outcome = None
        self.attempt = 1
        self.clock: Clock | None = None if outer is None else outer.clock  # of a request with a deadline
        self.may_retry = True
        self.hurries = False  # its client has waited for longer than it was to
        self._resolve = options
        self._given_options: UnitOptions | None = None
        self._sync_only = sync_only
        self._outer = outer
        self._async_session: AsyncSession | None = None
        self._sync_session: UnitSession | None = None
        self._work: UnitTransaction | None = None
        self.is_rollback_only = False
        self._callbacks: list[tuple[Callback, bool]] = []
        self._phase = Phase.OPEN
        self._failure: BaseException | None = None
        self._connected = False
        self._done: Future[None] | None = None  # tells who else waits for the end
        self.on_opened: Callable[[UnitOfWork], None] | None = None  # COMMIT does not do without a session

    def __repr__(self) -> str:
        return f"<UnitOfWork {self.name}: {self.outcome or 'open'}>"

    @property
    def options(self) -> UnitOptions:
        """Its options, looked up when they are first needed."""
        if self._given_options is None:
            self._given_options = self._resolve()
        return self._given_options

    @property
    def session(self) -> AsyncSession:
        """Its async session, made on the first call; the connection follows with the first SQL.

        Raises UnitOfWorkClosed after the unit was settled, MixedSessions if it has a sync session.
        """
        if self._async_session is None:
            if self._sync_only:
                has = "a `with` block is sync"
                raise mixed_sessions(self.name, "an async session", has, "unit.sync_session")
            self._open(asynchronous=True)
        if self._async_session is None:
            raise mixed_sessions(self.name, "an async session", "it has a sync one", "current_sync_session()")
        return self._async_session

    @property
    def sync_session(self) -> Session:
        """Its sync session, for `def` endpoints and sync repositories; otherwise as `session`."""
        if self._sync_session is None:
            self._open(asynchronous=False)
        if self._sync_session is None:
            raise mixed_sessions(self.name, "a sync session", "it has an async one", "current_session()")
        return self._sync_session

    def on_commit(self, callback: Callback) -> None:
        """Call `callback` after COMMIT, once, in the order of registration; never after a rollback.

        A coroutine function is awaited. A plain function runs where it was registered: on the event loop,
        or in a worker thread. What it raises is logged and changes nothing.
        """
        self._check_open()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._callbacks.append((callback, False))
        else:
            self._callbacks.append((callback, True))

    def set_rollback_only(self) -> None:
        """Roll back in the end, whatever the answer says: a dry run."""
        self._check_open()
        self.is_rollback_only = True

    def no_retry(self) -> None:
        """Do not run this request again from here on: it has done what a rollback does not undo.

        In a `new_unit()` it is the request around that is meant.
        """
        unit: UnitOfWork | None = self
        while unit is not None:
            unit.may_retry = False
            unit = unit._outer

    # -- the rest is for the middleware, new_unit() and the session

    @property
    def is_open(self) -> bool:
        """Whether it was not settled yet."""
        return self._phase is Phase.OPEN

    def holds_writer(self) -> bool:
        """Whether it has a connection that may write."""
        work = self._work
        return self.is_open and work is not None and bool(work.connections) and not self.options.read_only

    @property
    def failure(self) -> BaseException | None:
        """The error of the database that dooms it, if there is one."""
        return self._failure if self._work is None else self._work.failure

    def condition(self, error: BaseException) -> Condition | None:
        """What an error means to this unit: OSError and the like only if they kept it from connecting."""
        condition = self.database.condition(error)
        connected = self._connected if self._work is None else bool(self._work.connections)
        if connected or self.failure is not error:
            return condition
        return Condition.UNAVAILABLE if condition in (None, Condition.OTHER) else condition

    def check_outer(self) -> None:
        """Raise WouldDeadlock where this unit would wait for one that cannot end before it."""
        if self.options.read_only or not self.database.adapter.one_writer:
            return
        other = self._outer or unit_around()  # its session may be used inside the block of an inner unit
        while other is not None:
            if other is not self and other.database is self.database and other.holds_writer():
                raise would_deadlock(self.name, other.name, self.database.adapter.dialect)
            other = other._outer

    @property
    def is_sync(self) -> bool:
        """Whether it has a sync session."""
        return self._sync_session is not None

    @property
    def outlives_start(self) -> bool:
        """Whether it may go on until the last byte of the answer: there is nothing that it could commit."""
        return self.options.read_only and self.database.has_reader

    def check_may_tell(self) -> None:
        """Raise SendRefused if this unit, or one around it, may have done what is not committed yet."""
        unit: UnitOfWork | None = self
        while unit is not None:
            if unit.is_open and not unit.options.read_only:
                raise send_refused(unit.name)
            unit = unit._outer

    async def judge(self) -> None:
        """Raise what would refuse the commit, after a rollback; else leave the unit open."""
        work = self._work
        if work is None or self._phase is not Phase.OPEN:
            return
        session = self._own_session()
        try:
            work.check_committable()
            if session.new or session.dirty or session.deleted:
                if self._async_session is not None:
                    await self._async_session.flush()
                else:
                    await anyio.to_thread.run_sync(session.flush, limiter=self.database.limiter)
        except Exception:
            await self.settle(commit=False)
            raise

    async def settle(self, *, commit: bool) -> None:
        """Commit or roll back and close; returns when the database has answered.

        Raises what refused the commit, after the unit was rolled back: SQLAlchemy's exception,
        UnitOfWorkDoomed, OutcomeUnknown. Goes on to its end when the caller is cancelled.
        """
        if self._phase is Phase.SETTLING:
            self._done = self._done or Future()
            done = asyncio.shield(asyncio.wrap_future(self._done))  # others wait for it as well
            with suppress(Unfinished):
                await finish(done, seconds=2 * self.database.settle_timeout)
        work = self._start_settling(commit=commit)
        if work is None:
            return
        commit = commit and not self.is_rollback_only
        try:
            await self._settle_in_time(work, commit=commit)
        except OutcomeUnknown as unknown:
            await learn(work, unknown)
        finally:
            self._settled(work)

    async def _settle_in_time(self, work: UnitTransaction, *, commit: bool) -> None:
        if self._close_at_once(work, commit=commit):
            return
        try:
            seconds = min(_HURRY if self.hurries else math.inf, self.database.settle_timeout)
            await finish(self._settle(work, commit=commit), seconds=seconds)
        except Unfinished:
            self._out_of_time(work, commit=commit)

    def settle_sync(self, *, commit: bool) -> None:
        """The same in a thread, for `with new_unit()`."""
        work = self._start_settling(commit=commit)
        if work is None:
            return
        commit = commit and not self.is_rollback_only
        try:
            left = work.stop_entering()
            if left is not None and not wait((left,), self.database.settle_timeout).done:
                work.cut_off(left)
                self._out_of_time(work, commit=commit)
            else:
                work.settle(self._own_session(), commit=commit)
        except OutcomeUnknown as unknown:
            learn_sync(work, unknown)
        finally:
            self._settled(work)

    async def run_callbacks(self) -> None:
        """Run what `on_commit` took, if the unit was committed; each at most once."""
        if self._callbacks and self.outcome == "committed":
            await run_callbacks(self.name, self._callbacks, self.database.limiter)

    def run_callbacks_sync(self) -> None:
        """The same without an event loop."""
        if self._callbacks and self.outcome == "committed":
            run_callbacks_sync(self.name, self._callbacks)

    # -- private

    def _check_open(self) -> None:
        if self._phase is not Phase.OPEN:
            raise closed(self.name)

    def _open(self, *, asynchronous: bool) -> None:
        """Make the session, once, whichever thread asks first."""
        options = self.options
        database = self.database
        engine = database.engine(options, asynchronous=asynchronous)
        with database.opening:
            self._check_open()
            if self._work is not None:
                return
            autocommit = options.read_only and not options.snapshot and database.reads_need_transaction
            work = UnitTransaction(self, in_autocommit=autocommit, asynchronous=asynchronous)
            if asynchronous:
                self._async_session = database.async_session_class(
                    engine, sync_session_class=database.session_class, work=work, expire_on_commit=False
                )
            else:
                self._sync_session = database.session_class(engine, work=work, expire_on_commit=False)
            self._work = work
            database.opened(self)
            if self.on_opened is not None:
                self.on_opened(self)

    def _own_session(self) -> UnitSession:
        session = self._sync_session if self._async_session is None else self._async_session.sync_session
        assert isinstance(session, UnitSession)
        return session

    def _start_settling(self, *, commit: bool) -> UnitTransaction | None:
        """Close the way in; None if there is nothing to settle."""
        with self.database.opening:  # a thread that outlives its request may be opening the session
            if self._phase is not Phase.OPEN:
                return None
            if commit and not self.is_rollback_only and self._work is None and self.on_opened is not None:
                self.on_opened(self)  # asks for the session itself
            self._phase = Phase.SETTLING
        self.database.telling.settles(self)
        if self._work is None:
            self._phase = Phase.CLOSED
            self.outcome = "committed" if commit and not self.is_rollback_only else "rolled_back"
            self.database.telling.settled(self)
        return self._work

    def _close_at_once(self, work: UnitTransaction, *, commit: bool) -> bool:
        """Settle on the spot what needs neither the driver nor a thread for it; False if it does."""
        if work.stop_entering() is not None or (work.connections and not work.closes_without_waiting):
            return False
        session = self._own_session()
        if session.new or session.dirty or session.deleted or work.must_commit:
            return False
        work.settle(session, commit=commit)
        return True

    async def _settle(self, work: UnitTransaction, *, commit: bool) -> None:
        """Wait for calls that are still inside, then settle: in a greenlet, or in a thread.

        The thread is none of those that `def` endpoints use: all of them may be waiting for the very
        connection that is to be given back here.
        """
        session = self._own_session()
        asynchronous = self._async_session is not None
        left = work.stop_entering()
        if left is not None:
            try:
                await asyncio.shield(asyncio.wrap_future(left))  # a cancelled `left` would count as done
            except asyncio.CancelledError:
                if asynchronous:
                    await spawn(work.throw_away)
                else:
                    work.cut_off(left)
                raise
        if asynchronous:
            await spawn(work.settle, session, commit=commit)
        else:
            settle = partial(work.settle, session, commit=commit)
            await anyio.to_thread.run_sync(settle, limiter=self.database.limiter)

    def _out_of_time(self, work: UnitTransaction, *, commit: bool) -> None:
        """Say what can be said of a unit that was not settled in time; a rollback needs no answer."""
        work.abandon()
        seconds = f"{self.database.settle_timeout:g} seconds"
        if work.outcome == "unknown":
            raise commit_unanswered(self.name, f"{seconds} went by")
        late = ConcurrentUse(
            f"{self.name}: not settled within {seconds}, because a task or thread was still inside its "
            f"session or the database did not answer; nothing was kept, and the connection is thrown away"
        )
        if commit:
            raise late
        logger.warning("%s", late)

    def _settled(self, work: UnitTransaction) -> None:
        """Record the outcome, and let go of what would keep the session alive until a garbage collection."""
        work.abandon()
        self._phase = Phase.CLOSED
        self.outcome = work.outcome
        self._failure = work.failure
        self._connected = bool(work.connections)
        self._work = self._async_session = self._sync_session = None
        if work.phase is Phase.CLOSED:
            work.forget_connections()
        self.database.closed(self)
        self.database.telling.settled(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
