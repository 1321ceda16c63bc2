"""Items and receipts, over sockets, on every engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from api.items.models import NAME_LENGTH, SKU_LENGTH
from api.models import MAX_AMOUNT
from tests.api.service import Service, assert_problem, new_item, new_order, on_one_engine, stock_of


def test_a_created_item_is_answered_found_and_committed(service: Service, client: httpx.Client) -> None:
    answer = client.post("/items/", json={"name": "Blue mug", "sku": "MUG-1", "price": 1250, "stock": 10})
    item = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/items/{item['id']}"
    created_at = datetime.fromisoformat(item["created_at"])
    assert created_at.tzinfo is not None
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 60
    assert item == {
        "id": item["id"],
        "name": "Blue mug",
        "sku": "MUG-1",
        "price": 1250,
        "stock": 10,
        "created_at": item["created_at"],
    }
    assert client.get(answer.headers["location"]).json() == item
    sql = "SELECT name, sku, price, stock FROM items WHERE id = ?"
    assert service.backend.query(sql, [item["id"]]) == [("Blue mug", "MUG-1", 1250, 10)]


def test_what_an_item_begins_with_counts_as_received(service: Service, client: httpx.Client) -> None:
    full, empty = new_item(client, stock=7), new_item(client, stock=0)
    sql = "SELECT quantity FROM receipts WHERE item_id = ?"
    assert service.backend.query(sql, [full]) == [(7,)]
    assert service.backend.query(sql, [empty]) == []


def test_an_item_needs_no_sku_and_no_stock(client: httpx.Client) -> None:
    for _ in range(2):
        item = client.post("/items/", json={"name": "Mug", "price": 0}).json()
        assert (item["sku"], item["stock"]) == (None, 0)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"name": "x" * NAME_LENGTH}, id="longest name"),
        pytest.param({"name": "\U0001f600 Größe \u2028"}, id="any letters"),
        pytest.param({"price": 0}, id="free"),
        pytest.param({"price": MAX_AMOUNT, "stock": MAX_AMOUNT}, id="largest amounts"),
    ],
)
def test_the_bounds_themselves_are_allowed(client: httpx.Client, fields: dict[str, Any]) -> None:
    item = client.get(f"/items/{new_item(client, **fields)}").json()
    assert {name: item[name] for name in fields} == fields


def test_the_longest_sku_is_allowed(client: httpx.Client) -> None:
    sku = "~" * SKU_LENGTH
    assert client.get(f"/items/{new_item(client, sku=sku)}").json()["sku"] == sku


@on_one_engine
@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "   "},
        {"name": "a\x00b"},
        {"name": "two\nlines"},
        {"name": "x" * (NAME_LENGTH + 1)},
        {"name": None},
        {"name": 5},
        {"sku": ""},
        {"sku": "with blank"},
        {"sku": "Größe"},
        {"sku": "x" * (SKU_LENGTH + 1)},
        {"price": -1},
        {"price": MAX_AMOUNT + 1},
        {"price": 10**30},
        {"price": 1.5},
        {"price": "1"},
        {"price": True},
        {"price": None},
        {"stock": -1},
        {"stock": MAX_AMOUNT + 1},
        {"stock": None},
        {"colour": "blue"},
        {"id": 1},
    ],
    ids=repr,
)
def test_what_is_out_of_bounds_or_of_another_type_is_refused(
    client: httpx.Client, fields: dict[str, object]
) -> None:
    answer = client.post("/items/", json={"name": "Mug", "price": 1, **fields})
    (name,) = fields
    assert assert_problem(answer, 422, "invalid-request")["errors"][0]["field"] == f"body.{name}"


def test_a_change_changes_what_it_names(client: httpx.Client) -> None:
    item_id = new_item(client, sku="CHANGE-1", stock=3)
    before = client.get(f"/items/{item_id}").json()
    answer = client.patch(f"/items/{item_id}", json={"price": 5})
    assert answer.status_code == 200
    assert answer.json() == before | {"price": 5}
    answer = client.patch(f"/items/{item_id}", json={"name": "Cup", "sku": None})
    assert answer.json() == before | {"price": 5, "name": "Cup", "sku": None}
    assert client.patch(f"/items/{item_id}", json={}).json() == answer.json()
    assert client.get(f"/items/{item_id}").json() == answer.json()


@pytest.mark.parametrize("change", [{"stock": 5}, {"name": None}, {"price": -1}, {"sku": ""}], ids=repr)
def test_a_change_that_is_not_allowed_changes_nothing(
    client: httpx.Client, change: dict[str, object]
) -> None:
    item_id = new_item(client, stock=3)
    before = client.get(f"/items/{item_id}").json()
    assert_problem(client.patch(f"/items/{item_id}", json={"name": "Cup", **change}), 422, "invalid-request")
    assert client.get(f"/items/{item_id}").json() == before


def test_a_taken_sku_is_a_conflict(client: httpx.Client) -> None:
    taken = new_item(client, sku="TAKEN")
    other = new_item(client, sku="OTHER")
    answer = client.post("/items/", json={"name": "Mug", "price": 1, "sku": "TAKEN", "stock": 1})
    assert assert_problem(answer, 409, "sku-taken")["sku"] == "TAKEN"
    answer = client.patch(f"/items/{other}", json={"sku": "TAKEN", "price": 9})
    assert_problem(answer, 409, "sku-taken")
    assert client.get(f"/items/{other}").json()["price"] == 1250
    # An item may keep its own; one that is free again may be taken.
    assert client.patch(f"/items/{taken}", json={"sku": "TAKEN", "price": 9}).status_code == 200
    assert client.patch(f"/items/{taken}", json={"sku": None}).status_code == 200
    assert client.patch(f"/items/{other}", json={"sku": "TAKEN"}).status_code == 200


def test_a_deleted_item_is_gone_with_its_receipts(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client, stock=4)
    answer = client.delete(f"/items/{item_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert service.backend.query("SELECT id FROM receipts WHERE item_id = ?", [item_id]) == []
    assert_problem(client.get(f"/items/{item_id}"), 404, "item-not-found")
    assert_problem(client.delete(f"/items/{item_id}"), 404, "item-not-found")
    # What somebody noted down of the deleted item must never mean another one.
    assert new_item(client) > item_id


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_item_that_an_order_refers_to_stays(client: httpx.Client, cancelled: bool) -> None:
    item_id = new_item(client, stock=4)
    order = new_order(client, (item_id, 1)).json()
    if cancelled:
        assert client.post(f"/orders/{order['id']}/cancel").status_code == 200
    assert assert_problem(client.delete(f"/items/{item_id}"), 409, "item-in-use")["item_id"] == item_id
    assert stock_of(client, item_id) == (4 if cancelled else 3)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/receipts", {"quantity": 1})],
)
def test_an_unknown_item_is_not_found(client: httpx.Client, method: str, path: str, body: object) -> None:
    answer = client.request(method, f"/items/9007199254740991{path}", json=body)
    assert assert_problem(answer, 404, "item-not-found")["item_id"] == 2**53 - 1


# Receipts


def test_a_receipt_adds_to_the_stock(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client, stock=2)
    answer = client.post(f"/items/{item_id}/receipts", json={"quantity": 5})
    receipt = answer.json()
    assert answer.status_code == 201
    assert (receipt["item_id"], receipt["quantity"], receipt["stock"]) == (item_id, 5, 7)
    assert stock_of(client, item_id) == 7
    assert answer.headers["location"] == f"/items/{item_id}/receipts/{receipt['id']}"
    assert client.get(answer.headers["location"]).json() == receipt
    other = new_item(client)
    for path in (f"/items/{other}/receipts/{receipt['id']}", f"/items/{item_id}/receipts/{2**53 - 1}"):
        assert_problem(client.get(path), 404, "receipt-not-found")
    sql = "SELECT quantity, stock FROM receipts WHERE item_id = ? ORDER BY id"
    assert service.backend.query(sql, [item_id]) == [(2, 2), (5, 7)]


@on_one_engine
@pytest.mark.parametrize("quantity", [0, -1, MAX_AMOUNT + 1, 2**64, 1.5, "1", True, None], ids=repr)
def test_a_receipt_of_nothing_or_of_no_number_is_refused(client: httpx.Client, quantity: object) -> None:
    item_id = new_item(client, stock=2)
    answer = client.post(f"/items/{item_id}/receipts", json={"quantity": quantity})
    assert_problem(answer, 422, "invalid-request")
    assert stock_of(client, item_id) == 2


def test_stock_has_a_limit(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client, stock=MAX_AMOUNT - 1)
    answer = client.post(f"/items/{item_id}/receipts", json={"quantity": 2})
    problem = assert_problem(answer, 409, "stock-limit-exceeded")
    assert (problem["stock"], problem["limit"]) == (MAX_AMOUNT - 1, MAX_AMOUNT)
    assert client.post(f"/items/{item_id}/receipts", json={"quantity": 1}).status_code == 201
    sql = "SELECT sum(quantity) FROM receipts WHERE item_id = ?"
    assert [int(row[0]) for row in service.backend.query(sql, [item_id])] == [MAX_AMOUNT]
