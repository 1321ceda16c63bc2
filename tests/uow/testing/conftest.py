"""The fixtures of the plug-in, as a user's conftest would get them, over the database of `tests/uow`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.backends import Backend
from tests.uow.units import make_tables
from uow import Database


@pytest.fixture
def shop(backend: Backend) -> Iterator[Database]:
    """A database with tables that no event loop of the test has to do with."""
    make_tables(backend)
    database = Database(backend.database_url)
    yield database
    database.dispose_sync()
    backend.wait_until_at_rest()
