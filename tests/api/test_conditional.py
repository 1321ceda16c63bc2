"""Conditional requests on items and orders, on every engine: nobody overwrites what they have not seen."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.conditional import InvalidPrecondition, Tags
from api.migrations import prepare
from api.settings import Settings
from tests.api.service import Service, assert_problem, new_item, new_order, on_one_engine, stock_of
from tests.api.test_orders import lock_waiters
from tests.support.asgi import lifespan
from tests.support.backends import POSTGRES_LEGS, PostgresBackend, SqliteBackend
from tests.support.wait import LIMIT, wait_until

OTHER = '"another"'


def tag_of(client: httpx.Client, path: str) -> str:
    return client.get(path).headers["etag"]


def new_order_id(client: httpx.Client) -> int:
    return int(new_order(client, (new_item(client, stock=5), 2)).json()["id"])


def test_what_makes_or_changes_an_item_answers_the_tag_of_what_is_then_there(client: httpx.Client) -> None:
    made = client.post("/items/", json={"name": "Mug", "sku": None, "price": 1, "stock": 3})
    path = made.headers["location"]
    shown = client.get(path)
    assert shown.headers["etag"] == made.headers["etag"]
    assert shown.content == made.content
    assert shown.headers["etag"].startswith('"')
    assert shown.headers["cache-control"] == "private, no-cache"
    changed = client.patch(path, json={"price": 2})
    assert changed.headers["etag"] != made.headers["etag"]
    assert tag_of(client, path) == changed.headers["etag"]
    assert client.patch(path, json={}).headers["etag"] == changed.headers["etag"]


def test_a_receipt_and_an_order_change_the_tag_of_the_item(client: httpx.Client) -> None:
    path = f"/items/{(item_id := new_item(client, stock=3))}"
    tags = [tag_of(client, path)]
    assert client.post(f"{path}/receipts", json={"quantity": 1}).status_code == 201
    tags.append(tag_of(client, path))
    assert new_order(client, (item_id, 2)).status_code == 201
    tags.append(tag_of(client, path))
    assert len(set(tags)) == 3


def test_an_order_has_a_tag_that_its_cancellation_changes(client: httpx.Client) -> None:
    placed = new_order(client, (new_item(client, stock=5), 2))
    path = placed.headers["location"]
    assert tag_of(client, path) == placed.headers["etag"]
    cancelled = client.post(f"{path}/cancel", headers={"If-Match": placed.headers["etag"]})
    assert cancelled.headers["content-location"] == path
    assert cancelled.headers["etag"] not in {placed.headers["etag"], ""}
    assert tag_of(client, path) == cancelled.headers["etag"]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', ',, "x" ,{} ,', "*"])
def test_who_has_it_already_gets_304(service: Service, client: httpx.Client, form: str) -> None:
    for path in (f"/items/{new_item(client)}", f"/orders/{new_order_id(client)}"):
        tag = tag_of(client, path)
        answer = client.get(path, headers={"If-None-Match": form.format(tag)})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "private, no-cache"
        assert "content-type" not in answer.headers
        assert service.line_of(answer)["outcome"] == "committed"


@pytest.mark.parametrize("value", [OTHER, f"W/{OTHER}", '""', ""])
def test_who_has_something_else_gets_the_resource(client: httpx.Client, value: str) -> None:
    path = f"/items/{new_item(client)}"
    answer = client.get(path, headers={"If-None-Match": value})
    assert (answer.status_code, answer.json()["name"]) == (200, "Mug")


@pytest.mark.parametrize("form", ["{}", '"x", {}', "*", ',"x",\t{}'])
def test_a_change_of_the_state_that_was_seen_is_made(client: httpx.Client, form: str) -> None:
    path = f"/items/{new_item(client)}"
    headers = {"If-Match": form.format(tag_of(client, path))}
    assert client.get(path, headers=headers).status_code == 200
    assert client.patch(path, json={"price": 2}, headers=headers).json()["price"] == 2
    headers = {"If-Match": form.format(tag_of(client, path))}
    assert client.delete(path, headers=headers).status_code == 204


def test_tags_may_come_in_several_lines(client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    headers = [("If-Match", OTHER), ("If-Match", tag_of(client, path))]
    assert client.patch(path, json={"price": 2}, headers=headers).status_code == 200


@pytest.mark.parametrize("form", [OTHER, "W/{}", "", f"{OTHER}, W/{{}}"])
def test_a_change_of_another_state_is_refused_and_rolled_back(
    service: Service, client: httpx.Client, form: str
) -> None:
    """A weak tag is never the same as a strong one."""
    item, order = f"/items/{new_item(client)}", f"/orders/{new_order_id(client)}"
    for method, path, target, body in (
        ("PATCH", item, item, {"price": 2}),
        ("DELETE", item, item, None),
        ("POST", f"{order}/cancel", order, None),
        ("GET", item, item, None),
    ):
        before = client.get(target)
        headers = {"If-Match": form.format(before.headers["etag"])}
        answer = client.request(method, path, json=body, headers=headers)
        problem = assert_problem(answer, 412, "precondition-failed")
        assert not {"name", "price", "lines"} & problem.keys()
        assert "etag" not in answer.headers
        assert service.line_of(answer)["outcome"] == "rolled_back"
        assert client.get(target).content == before.content


def test_a_change_of_all_but_one_state_is_refused_in_that_state(client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    for value in (tag_of(client, path), f"W/{tag_of(client, path)}", "*"):
        answer = client.patch(path, json={"price": 2}, headers={"If-None-Match": value})
        assert_problem(answer, 412, "precondition-failed")
    assert client.patch(path, json={"price": 2}, headers={"If-None-Match": OTHER}).status_code == 200


def test_if_match_comes_before_if_none_match(client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    headers = {"If-Match": OTHER, "If-None-Match": tag_of(client, path)}
    assert_problem(client.get(path, headers=headers), 412, "precondition-failed")


MALFORMED = ["x", '"x', "'x'", 'w/"x"', '"a" "b"', '*, "a"', "**", '"a b"', 'W/ "a"', '"a";']


@on_one_engine
@pytest.mark.parametrize("field", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("value", MALFORMED)
def test_what_is_no_list_of_tags_is_refused(client: httpx.Client, field: str, value: str) -> None:
    path = f"/items/{new_item(client)}"
    for answer in (
        client.get(path, headers={field: value}),
        client.patch(path, json={"price": 2}, headers={field: value}),
    ):
        (fault,) = assert_problem(answer, 400, "invalid-precondition")["errors"]
        assert fault["field"] == f"header.{field.lower()}"
    assert client.get(path).json()["price"] == 1250


def test_a_long_list_is_read_in_the_time_that_its_length_takes() -> None:
    assert Tags.of("If-Match", ['"a",' * 20_000]) is not None
    for value in ('"a",' * 20_000 + "x", " ,\t" * 20_000 + "x", '"a"' + " " * 60_000 + "x"):
        with pytest.raises(InvalidPrecondition):
            Tags.of("If-Match", [value])


@on_one_engine
def test_a_request_that_fails_anyway_is_told_why(client: httpx.Client) -> None:
    """RFC 9110, section 13.2.1: preconditions are for what would succeed without them."""
    headers = {"If-Match": OTHER}
    assert_problem(client.get(f"/items/{2**53 - 1}", headers=headers), 404, "item-not-found")
    assert_problem(
        client.patch(f"/items/{2**53 - 1}", json={}, headers={"If-Match": "*"}), 404, "item-not-found"
    )
    path = f"/items/{new_item(client)}"
    assert_problem(client.patch(path, json={"price": "1"}, headers=headers), 422, "invalid-request")


def test_two_clients_that_edit_one_item_lose_no_edit(client: httpx.Client) -> None:
    """Without preconditions: each changes a field of its own, and both fields stay changed."""
    path = f"/items/{new_item(client)}"
    for number in range(10):
        start = threading.Barrier(2)

        def edit(change: dict[str, object], start: threading.Barrier = start) -> int:
            start.wait(30)
            return client.patch(path, json=change).status_code

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(edit, [{"name": f"n{number}"}, {"price": number}])) == [200, 200]
        item = client.get(path).json()
        assert (item["name"], item["price"]) == (f"n{number}", number)


def test_of_many_edits_of_one_state_one_is_made(service: Service, client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    headers = {"If-Match": tag_of(client, path)}

    def edit(number: int) -> httpx.Response:
        return client.patch(path, json={"price": number}, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(edit, range(2, 18)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 15
    (won,) = [answer.json() for answer in answers if answer.status_code == 200]
    assert client.get(path).json() == won
    service.backend.wait_until_at_rest()


def test_clients_that_try_again_after_412_count_without_a_loss(client: httpx.Client) -> None:
    """Read, add one, write with If-Match: the classic lost update, eight at a time."""
    path = f"/items/{new_item(client, price=0)}"
    met = Counter[int]()

    def add_one(_: int) -> None:
        while True:
            seen = client.get(path)
            answer = client.patch(
                path, json={"price": seen.json()["price"] + 1}, headers={"If-Match": seen.headers["etag"]}
            )
            met[answer.status_code] += 1
            if answer.status_code == 200:
                return
            assert_problem(answer, 412, "precondition-failed")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(24)))
    assert client.get(path).json()["price"] == met[200] == 24


def test_an_edit_meets_the_stock_of_an_order_that_came_between(client: httpx.Client) -> None:
    item_id = new_item(client, stock=3)
    tag = tag_of(client, f"/items/{item_id}")
    assert new_order(client, (item_id, 2)).status_code == 201
    answer = client.patch(f"/items/{item_id}", json={"price": 2}, headers={"If-Match": tag})
    assert_problem(answer, 412, "precondition-failed")
    assert client.patch(f"/items/{item_id}", json={"price": 2}).json()["stock"] == 1
    assert stock_of(client, item_id) == 1


async def test_a_service_can_demand_preconditions_of_edits(tmp_path: Path) -> None:
    database = {"url": SqliteBackend(tmp_path).database_url}
    service = {"require_if_match": True}
    app = create_app(Settings.model_validate({"database": database, "service": service}))
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        await prepare(app.state.database, "always")
        made = await client.post("/items/", json={"name": "Mug", "price": 1})
        path = made.headers["location"]
        for answer in (
            await client.patch(path, json={"price": 2}),
            await client.delete(path),
            await client.patch(path, json={"price": 2}, headers={"If-None-Match": OTHER}),
        ):
            assert_problem(answer, 428, "precondition-required")
        assert (await client.get(path)).json()["price"] == 1
        headers = {"If-Match": made.headers["etag"]}
        assert (await client.patch(path, json={"price": 2}, headers=headers)).status_code == 200
        assert (await client.delete(path, headers={"If-Match": "*"})).status_code == 204


@pytest.mark.parametrize("service", POSTGRES_LEGS, indirect=True)
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_tag_is_compared_with_what_is_there_once_the_row_is_locked(
    service: Service, client: httpx.Client, method: str
) -> None:
    """The request comes while another change holds the row: what counts is what that one leaves."""
    item_id = new_item(client)
    path = f"/items/{item_id}"
    headers = {"If-Match": tag_of(client, path)}
    body = {"name": "Cup"} if method == "PATCH" else None
    backend = service.backend
    assert isinstance(backend, PostgresBackend)
    with ThreadPoolExecutor(1) as pool, backend.server.connect(backend.dbname) as other:
        with other.transaction():
            other.execute("UPDATE items SET price = 7 WHERE id = %s", [item_id])
            editing = pool.submit(client.request, method, path, json=body, headers=headers)
            wait_until(lambda: lock_waiters(backend) == 1, "the edit waits for the item")
        assert_problem(editing.result(LIMIT), 412, "precondition-failed")
    item = client.get(path).json()
    assert (item["name"], item["price"]) == ("Mug", 7)
