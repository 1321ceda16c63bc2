"""Idempotency keys in the service: whoever sends a request again gets what the first one got."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.settings import Settings
from tests.api.guarded import GuardedService
from tests.api.service import (
    Service,
    assert_problem,
    in_process,
    new_item,
    on_one_engine,
    run_api,
    stock_of,
    write_config,
)
from tests.support.backends import Backend

MUG = {"name": "Mug", "price": 1250}
KEY = {"Idempotency-Key": "6f3c1a52-2f0e-4f7e-9a34-5a1f1f5f0c11"}
REPLAYED = "Idempotency-Replayed"


def test_an_order_that_is_sent_again_is_placed_once(client: httpx.Client, backend: Backend) -> None:
    item = new_item(client, stock=5)
    lines = {"lines": [{"item_id": item, "quantity": 2}]}
    with ThreadPoolExecutor(4) as pool:
        key = {"Idempotency-Key": f'"order of {item}"'.replace(" ", "-")}
        answers = [*pool.map(lambda _: client.post("/orders/", json=lines, headers=key), range(8))]

    assert {answer.status_code for answer in answers} == {201}
    assert (
        len({(answer.content, answer.headers["ETag"], answer.headers["Location"]) for answer in answers}) == 1
    )
    assert sum(REPLAYED in answer.headers for answer in answers) == 7
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 8
    assert stock_of(client, item) == 3
    backend.wait_until_at_rest()


@on_one_engine
def test_every_write_takes_a_key(client: httpx.Client) -> None:
    def twice(method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Idempotency-Key": f"{method}-{path}", **options.pop("headers", {})}
        first, again = [client.request(method, path, headers=headers, **options) for _ in range(2)]
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert (first.is_success, again.headers[REPLAYED]) == (True, "true")
        return first

    item = twice("POST", "/items/", json=MUG)
    path = item.headers["Location"]
    twice("POST", f"{path}/receipts", json={"quantity": 5})
    assert stock_of(client, item.json()["id"]) == 5
    twice("PATCH", path, json={"price": 1}, headers={"If-Match": client.get(path).headers["ETag"]})
    order = twice("POST", "/orders/", json={"lines": [{"item_id": item.json()["id"], "quantity": 1}]})
    twice("POST", f"{order.headers['Location']}/cancel")
    other = twice("POST", "/items/", json={**MUG, "name": "Cup"}, headers={"Idempotency-Key": "other"})
    assert twice("DELETE", other.headers["Location"]).status_code == 204


@on_one_engine
def test_refusals_are_problem_documents(client: httpx.Client) -> None:
    def post(key: str, **body: object) -> httpx.Response:
        return client.post("/items/", json={**MUG, **body}, headers={"Idempotency-Key": key})

    assert post("refusals").status_code == 201
    reused = assert_problem(post("refusals", name="Cup"), 422, "idempotency-key-reused")
    assert reused["request_id"]
    assert_problem(post("not one key"), 400, "idempotency-key-invalid")
    # What rolls back is not remembered, so a request that is put right may keep its key.
    assert_problem(post("wrong", price=-1), 422, "invalid-request")
    assert post("wrong").status_code == 201


@on_one_engine
def test_a_read_ignores_a_key(client: httpx.Client) -> None:
    answers = [client.get("/items/", headers=KEY) for _ in range(2)]
    assert [(each.status_code, REPLAYED in each.headers) for each in answers] == [(200, False)] * 2


async def test_one_line_requires_keys_for_orders() -> None:
    async with in_process(database={"url": "sqlite://"}, idempotency={"required": ["POST /orders/"]}) as (
        _,
        client,
    ):
        assert (await client.post("/items/", json=MUG)).status_code == 201
        order = {"lines": [{"item_id": 1, "quantity": 1}]}
        missing = await client.post("/orders/", json=order)
        assert_problem(missing, 400, "idempotency-key-required")
        assert_problem(await client.post("/orders/", json=order, headers=KEY), 409, "out-of-stock")


async def test_it_can_be_turned_off() -> None:
    async with in_process(database={"url": "sqlite://"}, idempotency={"enabled": False}) as (_, client):
        answers = [await client.post("/items/", json=MUG, headers=KEY) for _ in range(2)]
        assert [answer.json()["id"] for answer in answers] == [1, 2]


async def test_a_body_that_is_too_large_is_refused_as_without_a_key() -> None:
    async with in_process(database={"url": "sqlite://"}, server={"max_body_size": 50}) as (_, client):
        for headers in ({}, KEY):
            answer = await client.post("/items/", json={**MUG, "name": "x" * 100}, headers=headers)
            assert_problem(answer, 413, "content-too-large")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 40

        answer = await client.post("/items/", content=chunks(), headers=KEY)
        assert_problem(answer, 413, "content-too-large")


def test_a_key_belongs_to_who_has_the_api_key(tmp_path: Path) -> None:
    service = GuardedService(tmp_path)
    service.start()
    try:
        ids = []
        for holder in (service.keys.both, service.keys.writer):
            headers = {"Authorization": f"Bearer {holder.key}", **KEY}
            answers = [service.client().post("/items/", json=MUG, headers=headers) for _ in range(2)]
            assert [REPLAYED in answer.headers for answer in answers] == [False, True]
            ids.append(answers[0].json()["id"])
        assert len({*ids}) == 2
        assert_problem(service.client().post("/items/", json=MUG, headers=KEY), 401, "key-required")
    finally:
        service.close()


def test_the_document_tells_of_the_header_where_it_is_read() -> None:
    document = create_app(Settings()).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            told = [each["name"] for each in operation.get("parameters", ())]
            assert ("Idempotency-Key" in told) is (method not in ("get", "head")), (method, path)
            if method != "get":
                refused = [operation["responses"][status] for status in ("400", "409", "422")]
                contents = [each["content"]["application/problem+json"] for each in refused]
                examples = [name for each in contents for name in each["examples"]]
                assert len([name for name in examples if name.startswith("idempotency-key-")]) == 4


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"required": ["POST /order/"]}, 2, "[idempotency] required number 1: matches no route: "),
        ({"required": ["orders"]}, 2, "orders is no method and path"),
        ({"ttl": 59}, 2, "[idempotency] ttl: Input should be greater than or equal to 60"),
    ],
)
def test_a_wrong_setting_stops_the_start(
    tmp_path: Path, values: dict[str, object], code: int, said: str
) -> None:
    path = write_config(tmp_path / "a.toml", {"idempotency": values})
    ended = run_api("serve", "--config", str(path))
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
    assert f"{path}, line 2" in ended.stderr


@pytest.mark.parametrize("service_leg", ["sqlite", "pg18"], indirect=True)
def test_sweep_removes_what_has_expired(own_service: Service) -> None:
    config = str(own_service.config)
    assert run_api("sweep", "--config", config).returncode == 65
    own_service.start()
    for number in range(3):
        headers = {"Idempotency-Key": f"k{number}"}
        assert own_service.client().post("/items/", json=MUG, headers=headers).status_code == 201
    own_service.backend.execute("UPDATE idempotency_keys SET expires_at = 1 WHERE key <> 'k1'")
    ended = run_api("sweep", "--config", config)
    assert ended.stdout.endswith(": 2 idempotency keys have expired and are removed.\n"), ended.stderr
    assert own_service.backend.query("SELECT key FROM idempotency_keys") == [("k1",)]


def test_sweep_says_why_it_cannot(tmp_path: Path) -> None:
    nowhere = {"database": {"url": "postgresql://nobody@127.0.0.1:1/nothing"}}
    ended = run_api("sweep", "--config", str(write_config(tmp_path / "a.toml", nowhere)))
    assert ended.returncode == 69
    assert "cannot sweep" in ended.stderr
