"""Orders: every line or none, and stock that is conserved; over sockets, on every engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from api.models import MAX_AMOUNT
from tests.api.service import (
    BROKEN,
    Service,
    assert_problem,
    lines_of,
    new_item,
    new_order,
    on_one_engine,
    stock_of,
)
from tests.support.backends import POSTGRES_LEGS, PostgresBackend
from tests.support.wait import LIMIT, wait_until


def orders_of(service: Service, item_id: int) -> list[tuple[int, ...]]:
    sql = "SELECT order_id, quantity FROM order_lines WHERE item_id = ? ORDER BY order_id"
    return service.backend.query(sql, [item_id])


def test_an_order_holds_the_stock_of_its_lines(service: Service, client: httpx.Client) -> None:
    mug, cup = new_item(client, stock=5, price=100), new_item(client, stock=2, price=7)
    answer = new_order(client, (cup, 2), (mug, 3))
    order = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/orders/{order['id']}"
    assert order["status"] == "open"
    assert order["lines"] == [
        {"item_id": mug, "quantity": 3, "unit_price": 100},
        {"item_id": cup, "quantity": 2, "unit_price": 7},
    ]
    assert (stock_of(client, mug), stock_of(client, cup)) == (2, 0)
    assert client.get(answer.headers["location"]).json() == order
    assert service.backend.query(BROKEN) == []


def test_an_order_keeps_the_prices_of_its_day(client: httpx.Client) -> None:
    mug = new_item(client, stock=5, price=100)
    order = new_order(client, (mug, 1)).json()
    assert client.patch(f"/items/{mug}", json={"price": 900}).status_code == 200
    assert client.get(f"/orders/{order['id']}").json()["lines"][0]["unit_price"] == 100


def test_lines_of_one_item_add_up(client: httpx.Client) -> None:
    mug, cup = new_item(client, stock=5), new_item(client, stock=5)
    order = new_order(client, (mug, 1), (cup, 1), (mug, 3)).json()
    assert [(line["item_id"], line["quantity"]) for line in order["lines"]] == [(mug, 4), (cup, 1)]
    assert stock_of(client, mug) == 1


def test_lines_that_are_too_many_only_together_are_refused(service: Service, client: httpx.Client) -> None:
    mug = new_item(client, stock=5)
    problem = assert_problem(new_order(client, (mug, 3), (mug, 3)), 409, "out-of-stock")
    assert problem["lines"] == [{"item_id": mug, "requested": 6, "available": 5}]
    assert stock_of(client, mug) == 5
    assert orders_of(service, mug) == []


def test_an_order_is_placed_whole_or_not_at_all(service: Service, client: httpx.Client) -> None:
    plenty, short, none = new_item(client, stock=9), new_item(client, stock=1), new_item(client)
    answer = new_order(client, (none, 1), (plenty, 1), (short, 2))
    problem = assert_problem(answer, 409, "out-of-stock")
    assert problem["lines"] == [
        {"item_id": short, "requested": 2, "available": 1},
        {"item_id": none, "requested": 1, "available": 0},
    ]
    assert [stock_of(client, item) for item in (plenty, short, none)] == [9, 1, 0]
    assert [orders_of(service, item) for item in (plenty, short, none)] == [[], [], []]


def test_unknown_items_are_named_and_nothing_is_reserved(service: Service, client: httpx.Client) -> None:
    mug = new_item(client, stock=5)
    answer = new_order(client, (2**53 - 1, 1), (mug, 6), (2**53 - 2, 1))
    assert assert_problem(answer, 422, "unknown-items")["item_ids"] == [2**53 - 2, 2**53 - 1]
    assert stock_of(client, mug) == 5
    assert orders_of(service, mug) == []


@on_one_engine
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"lines": []},
        {"lines": None},
        {"lines": {}},
        {"lines": [None]},
        {"lines": [{}]},
        {"lines": [{"item_id": 1}]},
        {"lines": [{"item_id": "1", "quantity": 1}]},
        {"lines": [{"item_id": 0, "quantity": 1}]},
        {"lines": [{"item_id": 2**53, "quantity": 1}]},
        {"lines": [{"item_id": 1, "quantity": 0}]},
        {"lines": [{"item_id": 1, "quantity": -1}]},
        {"lines": [{"item_id": 1, "quantity": MAX_AMOUNT + 1}]},
        {"lines": [{"item_id": 1, "quantity": 1, "unit_price": 0}]},
        {"lines": lines_of([(1, 1)]), "status": "cancelled"},
        {"lines": lines_of([(1, 1)] * 101)},
    ],
    ids=lambda body: repr(body)[:60],
)
def test_an_order_of_another_shape_is_refused(client: httpx.Client, body: object) -> None:
    assert_problem(client.post("/orders/", json=body), 422, "invalid-request")


def test_a_hundred_of_the_largest_lines_add_up_exactly(client: httpx.Client) -> None:
    mug = new_item(client, stock=1)
    problem = assert_problem(new_order(client, *[(mug, MAX_AMOUNT)] * 100), 409, "out-of-stock")
    assert problem["lines"] == [{"item_id": mug, "requested": 100 * MAX_AMOUNT, "available": 1}]


def test_a_cancelled_order_gives_its_stock_back_once(service: Service, client: httpx.Client) -> None:
    mug, cup = new_item(client, stock=5), new_item(client, stock=2)
    order = new_order(client, (mug, 3), (cup, 2)).json()
    answer = client.post(f"/orders/{order['id']}/cancel")
    assert answer.status_code == 200
    assert answer.json() == order | {"status": "cancelled"}
    again = client.post(f"/orders/{order['id']}/cancel")
    assert assert_problem(again, 409, "order-already-cancelled")["order_id"] == order["id"]
    assert (stock_of(client, mug), stock_of(client, cup)) == (5, 2)
    assert client.get(f"/orders/{order['id']}").json() == answer.json()
    assert service.backend.query(BROKEN) == []


def test_an_unknown_order_is_not_found(client: httpx.Client) -> None:
    assert_problem(client.get("/orders/9007199254740991"), 404, "order-not-found")
    assert_problem(client.post("/orders/9007199254740991/cancel"), 404, "order-not-found")


def test_a_cancellation_that_does_not_fit_on_the_shelf_leaves_all_as_it_was(client: httpx.Client) -> None:
    cup, mug = new_item(client, stock=5), new_item(client, stock=MAX_AMOUNT)
    order = new_order(client, (cup, 5), (mug, 1)).json()
    assert client.post(f"/items/{mug}/receipts", json={"quantity": 1}).status_code == 201
    answer = client.post(f"/orders/{order['id']}/cancel")
    assert assert_problem(answer, 409, "stock-limit-exceeded")["item_id"] == mug
    assert client.get(f"/orders/{order['id']}").json() == order
    assert stock_of(client, cup) == 0


# One order of locks


def lock_waiters(backend: PostgresBackend) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    return int(backend.server.query("postgres", sql, [backend.dbname])[0][0])


def is_locked(backend: PostgresBackend, table: str, row_id: int) -> bool:
    try:
        backend.query(f"SELECT id FROM {table} WHERE id = ? FOR UPDATE NOWAIT", [row_id])
    except psycopg.errors.LockNotAvailable:
        return True
    return False


@pytest.mark.parametrize("service", POSTGRES_LEGS, indirect=True)
def test_items_are_locked_by_id_however_an_order_lists_them(service: Service, client: httpx.Client) -> None:
    first, second, third = (new_item(client, stock=5) for _ in range(3))
    backend = service.backend
    assert isinstance(backend, PostgresBackend)
    with ThreadPoolExecutor(1) as pool, backend.server.connect(backend.dbname) as blocker:
        with blocker.transaction():
            blocker.execute("SELECT id FROM items WHERE id = %s FOR UPDATE", [second])
            placing = pool.submit(new_order, client, (third, 1), (second, 1), (first, 1))
            wait_until(lambda: lock_waiters(backend) == 1, "the order waits for the second item")
            assert is_locked(backend, "items", first)
            assert not is_locked(backend, "items", third)
        assert placing.result(LIMIT).status_code == 201


@pytest.mark.parametrize("service", POSTGRES_LEGS, indirect=True)
def test_a_cancellation_locks_the_order_before_its_items(service: Service, client: httpx.Client) -> None:
    item = new_item(client, stock=5)
    order = new_order(client, (item, 1)).json()
    backend = service.backend
    assert isinstance(backend, PostgresBackend)
    with ThreadPoolExecutor(1) as pool, backend.server.connect(backend.dbname) as blocker:
        with blocker.transaction():
            blocker.execute("SELECT id FROM items WHERE id = %s FOR UPDATE", [item])
            cancelling = pool.submit(client.post, f"/orders/{order['id']}/cancel")
            wait_until(lambda: lock_waiters(backend) == 1, "the cancellation waits for the item")
            assert is_locked(backend, "orders", order["id"])
        assert cancelling.result(LIMIT).status_code == 200
