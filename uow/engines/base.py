"""What the core asks of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Any, ClassVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import Pool, QueuePool

from ..problems import Condition

SECONDS_TO_BEGIN = "uow_seconds_to_begin"
"""Where a connection says how long its BEGIN took, if that was a trip of its own."""

BORROWED = "uow_lease"
"""What a driver's connection has whose transaction is somebody else's and goes on after the unit's."""

_DRIVER = "uow_driver"


def driver_of(connection: Connection) -> Any:
    """The driver's own connection, looked up once per checkout: it is five properties away."""
    driver = connection.__dict__.get(_DRIVER)
    if driver is None:
        driver = connection.connection.driver_connection
        # Where a pool of asyncpg's makes the connections it is a proxy, which its transactions pass by.
        driver = connection.__dict__[_DRIVER] = getattr(driver, "_con", driver)
    return driver


def is_exhausted(pool: Pool) -> bool:
    """Whether who asks this pool for a connection now has to wait until another one gives his back."""
    if isinstance(pool, QueuePool):
        most = pool._max_overflow  # pyright: ignore[reportPrivateUsage]  # it has no other name
        return pool.checkedin() == 0 and pool.overflow() >= most != -1
    return getattr(pool, "is_busy", False)


class TransactionState(Enum):
    """What the driver knows of its connection's transaction, without asking the server."""

    IDLE = auto()
    OPEN = auto()
    FAILED = auto()


class Adapter(ABC):
    """One engine: how its writer and its reader are made, and what its drivers say."""

    dialect: ClassVar[str]
    drivers: ClassVar[tuple[str, ...]]
    """The packages whose exceptions count as the database's own."""
    one_writer: ClassVar[bool]
    """Whether a second writer waits for the first one's transaction to end."""

    over_a_link: ClassVar[bool] = True
    """Whether a connection can die while nobody uses it."""

    def resolve(self, url: URL) -> URL:
        """The URL of the real database, made at the first connection."""
        return url

    def shared_file(self, url: URL) -> str | None:
        """The one file that is the database to all processes with this URL; None if there is none."""
        return None

    @abstractmethod
    def engine_arguments(
        self, url: URL, options: dict[str, Any], *, asynchronous: bool, read_only: bool
    ) -> tuple[URL, dict[str, Any]]:
        """The URL with its driver and the keywords for `create_engine`, from those of the user."""

    @abstractmethod
    def prepare_writer(self, engine: Engine) -> None:
        """Install what the writer's connections need."""

    @abstractmethod
    def prepare_reader(self, engine: Engine) -> None:
        """Install what makes the reader's connections read-only, and proves it."""

    @abstractmethod
    def writer_at(self, engine: Engine, isolation: str) -> Engine:
        """The writer whose transactions run at this isolation level."""

    @abstractmethod
    def transactional_reader(self, engine: Engine, *, snapshot: bool) -> Engine:
        """The reader inside a transaction, for streams, savepoints and snapshots."""

    @abstractmethod
    def needs_transaction_to_read(self) -> bool:
        """Whether streams and savepoints of a reader need `transactional_reader`."""

    @abstractmethod
    def transaction_state(self, driver: Any) -> TransactionState:
        """The state of the transaction on a driver's connection; costs no round trip."""

    @abstractmethod
    def still_read_only(self, driver: Any) -> bool:
        """Whether a reader's connection may serve another unit; costs no round trip."""

    @abstractmethod
    def driver_condition(self, error: BaseException) -> Condition:
        """What an exception of the driver means."""

    def dispose(self) -> None:
        """Give back what `resolve` made."""

    def adopt(self, driver: Any) -> None:
        """Prepare a driver's connection for a unit; each time, because its engine may be the user's own."""

    def limit(self, connection: Connection, seconds: float) -> None:
        """Let the transaction that begins here have so many seconds for each statement and less for a lock.

        Where the engine knows no such thing, `interrupt` has to do.
        """

    def lift_limit(self, connection: Connection) -> None:
        """Let COMMIT, which comes next, take the time that it needs.

        PostgreSQL answers a COMMIT whose time is up while it waits for a synchronous standby as if it were
        safe there (https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION).
        """

    def interrupt(self, connection: Connection) -> None:
        """Stop a statement whose caller was cancelled and which the driver would run to its end."""

    def hang_up(self, driver: Any) -> None:
        """End the link under a driver that waits for an answer: it shall fail, in its own thread or task."""

    def is_drivers(self, error: BaseException) -> bool:
        """Whether the exception comes from the driver, wrapped by SQLAlchemy or not."""
        if isinstance(error, DBAPIError):
            return True
        return type(error).__module__.partition(".")[0] in self.drivers

    def condition(self, error: BaseException) -> Condition | None:
        """What an exception means to a unit; None if it has nothing to do with the database."""
        if isinstance(error, PoolTimeout):
            return Condition.UNAVAILABLE
        if isinstance(error, StaleDataError):
            return Condition.STALE
        if not self.is_drivers(error):
            return None
        driver_error = error.orig if isinstance(error, DBAPIError) and error.orig else error
        condition = self.driver_condition(driver_error)
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        return Condition.CONNECTION_LOST if lost and condition is Condition.OTHER else condition
