"""What a test is told of its units: how they ended, and what they do after their commit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.backends import Backend, Mode
from tests.uow.testing.apps import app_with, telling
from tests.uow.testing.clients import TestClient, asgi_client
from tests.uow.units import count, in_thread, insert, within
from uow import Database, current_unit
from uow.testing import Probe, SettledUnit, plugin, rolled_back

pytestmark = pytest.mark.backends("sqlite", "pg18")


def settled(name: str, outcome: Any = "committed", *, read_only: bool = False) -> SettledUnit:
    return SettledUnit(name, outcome, read_only, is_request=" " in name)


async def test_the_units_that_have_ended_are_listed(mode: Mode, database: Database) -> None:
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        await client.post("/nut")
        await client.get("/names")
        await within(database, mode, insert("bolt"), name="worker")
        assert probe.units == [
            settled("POST /nut"),
            settled("POST /nut", "rolled_back"),
            settled("GET /names", read_only=True),
            settled("worker"),
        ]
        assert [str(unit) for unit in probe.units[1:3]] == [
            "POST /nut: rolled_back", "GET /names: committed (read-only)"
        ]  # fmt: skip


async def test_the_last_unit_that_could_write_is_asked_for(mode: Mode, database: Database) -> None:
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        with pytest.raises(AssertionError, match=r"the last unit should be committed.*\n  none"):
            probe.assert_committed()
        await client.post("/nut")
        await client.get("/names")
        probe.assert_committed()
        await client.post("/nut")
        probe.assert_rolled_back()
        with pytest.raises(AssertionError, match="POST /nut: committed\n  GET /names: committed"):
            probe.assert_committed()
        probe.assert_committed(1)
        probe.assert_rolled_back(1, name="POST /nut")
        probe.assert_committed(0, name="worker")
        with pytest.raises(AssertionError, match="2 units named 'POST /nut' should be committed"):
            probe.assert_committed(2, name="POST /nut")
        with pytest.raises(AssertionError):
            probe.assert_committed(name="GET /names")


async def test_a_dry_run_is_rolled_back(mode: Mode, database: Database) -> None:
    def dry(session: Any) -> None:
        insert("nut")(session)
        current_unit().set_rollback_only()

    async with rolled_back(database) as probe:
        await within(database, mode, dry)
        probe.assert_rolled_back(1)
        assert await within(database, mode, count) == 0


async def test_callbacks_run_after_a_commit_and_are_kept_for_a_look(mode: Mode, database: Database) -> None:
    calls: list[str] = []
    app = app_with(database, mode, tell=telling(calls, "nut"))
    async with rolled_back(database) as probe, asgi_client(app) as client:
        await client.post("/tell")
        assert calls == ["nut"]
        assert len(probe.callbacks) == 1
        assert (await client.post("/tell")).status_code == 409
        assert (calls, len(probe.callbacks)) == (["nut"], 1)


async def test_callbacks_may_be_held_back(mode: Mode, database: Database) -> None:
    calls: list[str] = []
    async with rolled_back(database, run_callbacks=False) as probe:
        await within(database, mode, telling(calls, "nut"))
        await within(database, mode, telling(calls, "bolt"))
        assert calls == []
        for callback in probe.callbacks:
            callback()
        assert calls == ["nut", "bolt"]


async def test_a_block_that_has_ended_is_told_nothing_more(mode: Mode, database: Database) -> None:
    async with rolled_back(database) as probe:
        pass
    await within(database, mode, insert("nut"))
    assert probe.units == []


@pytest.fixture
def uow_database(shop: Database) -> Database:
    return shop


uow_probe = plugin.uow_probe


def test_the_fixture_serves_a_test_client(
    uow_probe: Probe, uow_database: Database, backend: Backend, mode: Mode
) -> None:
    client = TestClient(app_with(uow_database, mode))
    assert client.post("/nut").status_code == 200
    uow_probe.assert_committed(name="POST /nut")
    assert backend.count("items") == 0


async def test_the_fixture_serves_an_async_test(
    uow_probe: Probe, uow_database: Database, backend: Backend, mode: Mode
) -> None:
    async with asgi_client(app_with(uow_database, mode)) as client:
        assert (await client.post("/nut")).status_code == 200
    uow_probe.assert_committed(name="POST /nut")
    assert backend.count("items") == 0


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread of ours outlives a test."""
    yield
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name.lower()]


def test_each_test_may_have_a_loop_of_its_own(shop: Database, backend: Backend, mode: Mode) -> None:
    """As with pytest-asyncio: fixtures and tests in loops that come and go inside the block."""
    with rolled_back(shop) as probe:
        asyncio.run(within(shop, mode, insert("nut")))
        assert asyncio.run(within(shop, mode, count, read_only=True)) == 1
        asyncio.run(in_thread(asyncio.run, within(shop, mode, insert("bolt"))))
        probe.assert_committed(2)
    assert backend.count("items") == 0
