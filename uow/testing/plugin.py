"""Fixtures of pytest: `pytest_plugins = ["uow.testing.plugin"]` in your outermost `conftest.py`.

@pytest.fixture
def uow_database() -> Database:
    return database             # that of your app

def test_an_item_is_added(client: TestClient, uow_probe: Probe) -> None:
    client.post("/items/", params={"name": "pen"})
    uow_probe.assert_committed(name="POST /items/")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..database import Database
from . import Probe, rolled_back

__all__ = ["uow_database", "uow_probe"]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", "rolled_back(run_callbacks=True, wait=10.0): the options of the transaction around a test"
    )


@pytest.fixture
def uow_database() -> Database:
    """The database of the app; yours to define."""
    raise pytest.UsageError("define a fixture `uow_database` that returns the Database of your app")


@pytest.fixture
def uow_probe(request: pytest.FixtureRequest, uow_database: Database) -> Iterator[Probe]:
    """The test runs in a transaction that is rolled back at its end; sync and async tests alike."""
    marker: pytest.Mark | None = request.node.get_closest_marker("rolled_back")
    options: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    with rolled_back(uow_database, **options) as probe:
        yield probe
