"""L22, L9: trees of tasks on one session. A 201 keeps what the blocks that ended well wrote, and no more.

Each tree grows from a number, so the same number does the same again, but for what time-outs cut off.
`TESTS_TREES` in the environment asks for more trees than the usual ones.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from random import Random

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import Backend
from tests.uow.units import Item, app_of, make_tables, wait_for_threads
from uow import Database, current_session
from uow.errors import ConcurrentUse

pytestmark = [
    pytest.mark.backends("sqlite", "pg18"),
    # A time-out that comes while aiosqlite connects leaves the connection to the garbage collector, which
    # Python 3.13 says; it may be collected in any later step.
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <uow.engines.sqlite._Connection"),
]

TREES = int(os.environ.get("TESTS_TREES", "60"))
DEPTH = 4
POOL = 3

Names = list[str]
"""What a block has written and would keep if it ended well."""


class Boom(Exception):
    """What the code of an app raises."""


class Tree:
    """The work of one request: steps that write, fail, wait, open savepoints and start tasks.

    Each task and each block draws from numbers of its own: what the others do in the meantime does not
    change what it does.
    """

    def __init__(self, number: int, session: AsyncSession) -> None:
        self._number = number
        self._session = session
        self._count = itertools.count()
        self._steps: list[tuple[Callable[[Names, Random, int], Awaitable[None]], int]] = [
            (self._write, 35),
            (self._read, 10),
            (self._pause, 11),
            (self._fail, 4),
            (self._contain, 5),
            (self._refused, 1),
            (self._swallow, 1),
            (self._block, 15),
            (self._tasks, 13),
            (self._cut_off_while_it_waits, 3),
            (self._cut_off_anywhere, 3),
        ]
        self._deep = {self._block, self._tasks, self._cut_off_anywhere}

    async def grow(self, kept: Names, random: Random, depth: int, most: int) -> None:
        """Take up to so many steps; `kept` gets the names that are there if the block ends well."""
        steps = [(step, weight) for step, weight in self._steps if depth < DEPTH or step not in self._deep]
        for _ in range(random.randint(1, most)):
            [step] = random.choices([step for step, _ in steps], [weight for _, weight in steps])
            await step(kept, random, depth)

    async def _write(self, kept: Names, random: Random, _: int) -> None:
        name = f"{self._number}-{next(self._count)}"
        way = random.choice(["statement", "flush", "connection"])
        if way == "statement":
            await self._session.execute(insert(Item).values(name=name, version=1))
        elif way == "connection":
            connection = await self._session.connection()
            await connection.execute(insert(Item).values(name=name, version=1))
        else:
            try:
                self._session.add(Item(name=name))
            except ConcurrentUse:
                return  # a call that cannot wait is refused while another task has a savepoint open
            await self._session.flush()
        kept.append(name)

    async def _read(self, _: Names, random: Random, __: int) -> None:
        slow = self._session.get_bind().dialect.name == "postgresql" and random.random() < 0.3
        await self._session.execute(text("SELECT pg_sleep(0.003)" if slow else "SELECT 1"))

    async def _pause(self, _: Names, random: Random, __: int) -> None:
        await asyncio.sleep(random.choice([0, 0, 0.001]))

    async def _fail(self, _: Names, __: Random, ___: int) -> None:
        raise Boom

    async def _contain(self, _: Names, random: Random, depth: int) -> None:
        """A savepoint contains what the database refused, with all else that the block wrote."""
        try:
            async with self._session.begin_nested():
                await self._write([], random, depth)
                await self._refused([], random, depth)
        except IntegrityError:
            pass

    async def _refused(self, _: Names, __: Random, ___: int) -> None:
        await self._session.execute(insert(Item).values(name="taken", version=1))

    async def _swallow(self, kept: Names, random: Random, depth: int) -> None:
        """No savepoint contains the error: it is not over because the code went on."""
        with suppress(IntegrityError):
            await self._refused(kept, random, depth)

    async def _block(self, kept: Names, random: Random, depth: int) -> None:
        """A savepoint that contains what fails in it."""
        inner: Names = []
        try:
            async with self._session.begin_nested():
                await self.grow(inner, Random(random.random()), depth + 1, 3)
            kept.extend(inner)
        except (Boom, IntegrityError):
            pass

    async def _tasks(self, kept: Names, random: Random, depth: int) -> None:
        """Tasks side by side; what one of them wrote before it failed belongs to the block around."""
        parts: list[Names] = [[] for _ in range(random.randint(2, 3))]
        raises = random.random() < 0.5
        tasks = [self.grow(part, Random(random.random()), depth + 1, 2) for part in parts]
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        kept.extend(itertools.chain.from_iterable(parts))
        errors = [end for end in ends if end is not None]
        for error in errors:
            if raises or not isinstance(error, Boom):
                raise error

    async def _cut_off_while_it_waits(self, _: Names, random: Random, depth: int) -> None:
        """The time of a block is over while none of its statements runs."""
        try:
            async with asyncio.timeout(None) as limit, self._session.begin_nested():
                await self._write([], random, depth)
                limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.Event().wait()
        except TimeoutError:
            pass

    async def _cut_off_anywhere(self, kept: Names, random: Random, depth: int) -> None:
        """The time of a block is over wherever it is: in a statement, in its begin, in its end, or never."""
        try:
            async with asyncio.timeout(random.choice([0, 0.001, 0.003, 0.01])):
                await self._block(kept, random, depth)
        except TimeoutError:
            pass


class App:
    """An app of which each request grows the tree of its number."""

    def __init__(self, database: Database) -> None:
        self.kept: Names = []
        self._number = 0
        self._app = app_of(self._handle, database)

    async def request(self, number: int) -> Recorder:
        self.kept, self._number = [], number
        try:
            return await run_asgi(self._app, "POST", "/work")
        except TimeoutError:
            pytest.fail(f"tree {number} hangs")

    async def _handle(self, _: Request) -> Response:
        random = Random(self._number)
        contains = random.random() < 0.7
        status = random.choices([201, 404], [9, 1])[0]
        try:
            await Tree(self._number, current_session()).grow(self.kept, random, 0, 5)
        except Boom:
            if not contains:
                raise
        return JSONResponse(None, status)


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    """A database with a small pool, in which one name is taken."""
    make_tables(backend)
    backend.execute("INSERT INTO items (name) VALUES (?)", ["taken"])
    # asyncpg leaves a future that nobody awaits when it is cancelled as it asks the server for TLS.
    url = backend.database_url + ("?sslmode=disable" if backend.dialect == "postgresql" else "")
    async with Database(url, pool_size=POOL, max_overflow=0) as made:
        yield made
    await wait_for_threads()


async def test_L22_L9_a_201_of_a_tree_of_tasks_keeps_exactly_what_ended_well(
    backend: Backend, database: Database
) -> None:
    app = App(database)
    kept, nothing = 0, 0
    for number in range(TREES):
        recorder = await app.request(number)
        rows = backend.query("SELECT name FROM items WHERE name LIKE ?", [f"{number}-%"])
        expected = app.kept if recorder.status == 201 else []
        assert sorted(row[0] for row in rows) == sorted(expected), f"tree {number}: {recorder.status}"
        kept += bool(expected)
        nothing += recorder.status != 201

    assert (kept > 0, nothing > 0) == (True, True), "trees that show nothing"
    backend.wait_until_at_rest()
    await the_pool_is_whole(backend, database)


async def the_pool_is_whole(backend: Backend, database: Database) -> None:
    """Each of its connections can be had at the same time: on SQLite one writes, on PostgreSQL all do."""
    names = [f"whole-{number}" for number in range(POOL if backend.dialect == "postgresql" else 1)]
    async with AsyncExitStack() as stack:
        for name in names:
            unit = await stack.enter_async_context(database.new_unit())
            await unit.session.execute(insert(Item).values(name=name, version=1))
    rows = backend.query("SELECT name FROM items WHERE name LIKE ? ORDER BY name", ["whole-%"])
    assert [row[0] for row in rows] == names
