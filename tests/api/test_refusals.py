"""What clients are told when the database fails; each case in a transaction that is rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.items.errors import ItemNotFound, SkuTaken, UnknownItems
from api.items.models import Item
from api.items.repository import ItemRepository
from tests.api.service import in_process
from tests.support.backends import Backend
from uow import Database
from uow.testing import Condition, Probe, rolled_back

pytestmark = pytest.mark.backends("sqlite", "pg18")


def new(name: str, sku: str | None) -> Item:
    return Item.of(name=name, sku=sku, price=1, stock=0)


ITEM = {"name": "bolt", "price": 10, "stock": 5}


@pytest.fixture
async def app(backend: Backend) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    sections: dict[str, Any] = {
        "database": {"url": backend.database_url, "migrate_on_start": "always"},
        "unit_of_work": {"retry_attempts": 1},  # what is refused is to be seen
    }
    async with in_process(**sections) as app:
        yield app


@pytest.fixture
def database(app: tuple[FastAPI, httpx.AsyncClient]) -> Database:
    made: Database = app[0].state.database
    return made


@pytest.fixture
async def probe(database: Database) -> AsyncIterator[Probe]:
    async with rolled_back(database) as probe:
        yield probe


@pytest.fixture
def client(app: tuple[FastAPI, httpx.AsyncClient], probe: Probe) -> httpx.AsyncClient:
    return app[1]


@pytest.mark.parametrize(
    ("condition", "status", "name"),
    [
        (Condition.SERIALIZATION, 503, "serialization-failure"),
        (Condition.STORAGE_FULL, 503, "storage-full"),
        (Condition.UNIQUE, 409, "unique-violation"),
    ],
)
async def test_L5_a_commit_that_is_refused_is_no_order(
    client: httpx.AsyncClient, probe: Probe, condition: Condition, status: int, name: str
) -> None:
    item = (await client.post("/items/", json=ITEM)).json()
    probe.fail_commit(condition)

    answer = await client.post("/orders/", json={"lines": [{"item_id": item["id"], "quantity": 2}]})

    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{name}")
    assert ("retry-after" in answer.headers) is (status == 503)
    assert (await client.get(f"/items/{item['id']}")).json()["stock"] == 5
    assert (await client.get("/orders/")).json()["items"] == []
    probe.assert_rolled_back(name="POST /orders/")


@pytest.mark.parametrize("statement", [1, 2, 3])
async def test_L7_a_connection_that_is_lost_at_any_statement_reserves_nothing(
    client: httpx.AsyncClient, probe: Probe, statement: int
) -> None:
    item = (await client.post("/items/", json=ITEM)).json()
    probe.fail_statement(statement, Condition.CONNECTION_LOST)

    answer = await client.post("/orders/", json={"lines": [{"item_id": item["id"], "quantity": 2}]})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await client.get(f"/items/{item['id']}")).json()["stock"] == 5


async def test_the_repository_speaks_of_items_and_not_of_rows(database: Database, probe: Probe) -> None:
    items = ItemRepository()
    async with database.new_unit():
        bolt, nut = new("bolt", "B1"), new("nut", None)
        await items.save(bolt)
        await items.save(nut)
        assert [item.name for item in await items.after(0, 10)] == ["bolt", "nut"]
        assert [item.id for item in await items.lock([nut.id, bolt.id])] == [bolt.id, nut.id]
        with pytest.raises(UnknownItems):
            await items.lock([bolt.id, 10_000])
        await items.remove(nut.id)
        with pytest.raises(ItemNotFound):
            await items.get(nut.id + 1)
    probe.assert_committed(1)

    with pytest.raises(SkuTaken):
        async with database.new_unit():
            await items.save(new("another", "B1"))
    probe.assert_rolled_back()
