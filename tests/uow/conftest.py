"""A database of the library's on each engine, with tables, disposed of after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.backends import Backend
from tests.uow.units import make_tables, wait_for_threads
from uow import Database

Connect = Callable[..., Database]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make databases from URLs or backends; they are disposed of after the test."""
    made: list[Database] = []

    def make(where: Backend | str, **options: Any) -> Database:
        url = where if isinstance(where, str) else where.database_url
        made.append(Database(url, **options))
        return made[-1]

    yield make
    for database in made:
        await database.dispose()
    await wait_for_threads()


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    """The database of `backend`, with the tables of `units.SCHEMA`."""
    make_tables(backend)
    return connect(backend)
