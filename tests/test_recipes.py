"""The recipes of docs/recipes do what their pages say; their whole files are in test_recipe_files.py."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from tests.support.pages import DOCS, Block, files, programs, run
from tests.uow.testing.clients import TestClient
from uow import Database

PAGES = sorted((DOCS / "recipes").glob("*.md"))
OF_TEST_RECIPE_FILES = {
    "heroes.py",
    "jobs.py",
    "migrations/env.py",
    "tasks.py",
    "with_arq.py",
    "with_celery.py",
    "with_events.py",
}

Names = dict[str, Any]


@pytest.fixture
async def recipes(readme: Names) -> AsyncIterator[tuple[httpx.AsyncClient, Names]]:
    """A client of the app that has all the recipes, and what they define."""
    for block in every_program():
        if "asyncio.run" not in block.text:
            run(block, readme)
    app: FastAPI = readme["app"]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        for name in ("audit", "archive"):
            await stack.enter_async_context(readme[name])
        transport = httpx.ASGITransport(app)
        yield (
            await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test")),
            readme,
        )


def every_program() -> list[Block]:
    return [block for page in PAGES for block in programs(page)]


async def rows(names: Names, model: str, database: str = "database") -> list[Any]:
    of: Database = names[database]
    async with of.new_unit(read_only=True) as unit:
        return list(await unit.session.scalars(names["select"](names[model])))


async def item_names(names: Names, database: str = "database") -> list[str]:
    return [item.name for item in await rows(names, "Item", database)]


async def make_tables(database: Database, names: Names) -> None:
    async with database.new_unit() as unit:
        await unit.session.run_sync(lambda session: names["Base"].metadata.create_all(session.connection()))


def test_every_file_of_a_recipe_is_tried() -> None:
    assert {title for page in PAGES for title in files(page)} == OF_TEST_RECIPE_FILES


async def test_a_part_that_fails_is_not_all(recipes: tuple[httpx.AsyncClient, Names]) -> None:
    client, names = recipes
    added = [(await client.post("/tags/", params={"id": 1, "name": "a"})).json() for _ in range(2)]
    assert added == [{"added": True}, {"added": False}]
    assert await item_names(names) == ["a"]


async def test_a_failed_login_is_counted_and_a_get_may_write(
    recipes: tuple[httpx.AsyncClient, Names],
) -> None:
    client, names = recipes
    async with names["database"].new_unit() as unit:
        unit.session.add(names["Account"](name="me", password="right"))
    assert (await client.post("/login", params={"name": "me", "password": "wrong"})).status_code == 401
    assert [account.failures for account in await rows(names, "Account")] == [1]
    assert (await client.get("/unsubscribe", params={"name": "me"})).status_code == 200
    assert [account.failures for account in await rows(names, "Account")] == [0]


async def test_an_audit_row_survives_what_it_speaks_of(recipes: tuple[httpx.AsyncClient, Names]) -> None:
    client, names = recipes
    assert (await client.post("/transfers/", params={"amount": 2000})).status_code == 403
    assert [attempt.what for attempt in await rows(names, "Attempt")] == ["transfer of 2000"]
    assert await item_names(names) == []
    assert (await client.post("/transfers/", params={"amount": 1})).status_code == 200
    assert await item_names(names) == ["transfer of 1"]


async def test_an_audit_row_may_be_written_only_if_the_request_fails(
    recipes: tuple[httpx.AsyncClient, Names],
) -> None:
    client, names = recipes
    assert (await client.post("/payments/", params={"amount": 1})).status_code == 200
    assert await rows(names, "Attempt") == []
    assert (await client.post("/payments/", params={"amount": 2000})).status_code == 403
    assert [attempt.what for attempt in await rows(names, "Attempt")] == ["refused to pay 2000"]
    assert await item_names(names) == ["payment of 1"]


async def test_work_after_the_answer_and_at_the_commit(recipes: tuple[httpx.AsyncClient, Names]) -> None:
    client, names = recipes
    item_id = (await client.post("/indexed-items/", params={"name": " pen "})).json()["id"]
    assert await item_names(names) == ["pen"]
    names["cache"][item_id] = "pen"
    assert (await client.delete(f"/items/{item_id}")).status_code == 204
    assert names["cache"] == {}
    assert await item_names(names) == []


async def test_a_dry_run_keeps_nothing_and_def_endpoints_count(
    recipes: tuple[httpx.AsyncClient, Names],
) -> None:
    client, _ = recipes
    dry = await client.post("/imports/", params={"dry_run": True}, json=["x", "y"])
    assert dry.json() == {"items": 2}
    assert (await client.get("/count")).json() == {"items": 0}
    assert (await client.post("/imports/", json=["x", "y"])).json() == {"items": 2}
    assert (await client.get("/count")).json() == {"items": 2}


async def test_calls_take_turns_and_a_stream_reads(recipes: tuple[httpx.AsyncClient, Names]) -> None:
    client, _ = recipes
    assert (await client.post("/pairs/", params={"first": "a", "second": "b"})).status_code == 201
    assert (await client.get("/counts/", params={"names": "a,b,c"})).json() == [1, 1, 0]
    assert (await client.get("/items.txt")).text == "a\nb\n"


async def test_several_databases_each_keep_their_own(recipes: tuple[httpx.AsyncClient, Names]) -> None:
    client, names = recipes
    assert (await client.post("/audited-items/", params={"name": "pen"})).status_code == 201
    await make_tables(names["archive"], names)
    assert (await client.post("/archive/items/", params={"name": "old pen"})).status_code == 201
    assert await item_names(names) == ["pen"]
    assert await item_names(names, "audit") == ["somebody wants pen"]
    assert await item_names(names, "archive") == ["old pen"]


async def test_what_the_second_database_has_kept_stays_if_the_request_fails(
    recipes: tuple[httpx.AsyncClient, Names],
) -> None:
    client, names = recipes
    database: Database = names["database"]
    async with database.new_unit() as unit:
        await unit.session.execute(
            text("CREATE TRIGGER no BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'no'); END")
        )
    assert (await client.post("/audited-items/", params={"name": "pen"})).status_code >= 400
    assert await item_names(names) == []
    assert await item_names(names, "audit") == ["somebody wants pen"]


def test_a_web_socket_acknowledges_what_is_kept(readme: Names) -> None:
    for block in programs(DOCS / "recipes" / "streams.md"):
        run(block, readme)
    with TestClient(readme["app"]) as client, client.websocket_connect("/feed") as socket:
        socket.send_text("pen")
        assert socket.receive_text() == "kept"
        assert [item["name"] for item in client.get("/items/").json()] == ["pen"]


def test_a_script_changes_what_is_there(readme: Names, capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(readme["app"]) as client:
        client.post("/items/", params={"name": "pen"})
    for block in programs(DOCS / "recipes" / "workers.md"):
        run(block, readme)  # the script runs at once
    with TestClient(readme["app"]) as client:
        assert [item["name"] for item in client.get("/items/").json()] == ["PEN"]


async def test_an_observer_is_told(readme: Names, capsys: pytest.CaptureFixture[str]) -> None:
    for block in programs(DOCS / "recipes" / "operations.md"):
        run(block, readme)
    async with readme["observed"] as observed, observed.new_unit(name="stocktaking") as unit:
        await unit.session.execute(readme["select"](1))
    assert re.fullmatch(r"stocktaking committed None 0\.\d{3} s, attempt 1\n", capsys.readouterr().out)


async def test_the_test_in_the_recipes_passes(readme: Names) -> None:
    for block in programs(DOCS / "recipes" / "operations.md"):
        if "def test_" in block.text:
            run(block, readme)
    await readme["test_an_item_is_kept"]()
