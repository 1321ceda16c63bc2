"""The service against a model, in random sequences of requests: after each, both have the same.

What the service has is read twice: through its own lists, and through a second connection. TESTS_EXAMPLES
sets how many sequences are tried.
"""

from __future__ import annotations

import http.client
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.models import MAX_AMOUNT, MAX_ID
from tests.api.inventory_model import INVALID, Document, Inventory, Refusal
from tests.api.service import BROKEN, Service, assert_problem, lines_of, new_backend
from tests.support.backends import Backend, Leg
from tests.support.postgres import PostgresServers
from tests.support.wait import LIMIT

EXAMPLES = int(os.environ.get("TESTS_EXAMPLES", "20"))
STEPS = 40

# Everything that is stored, in one statement and so of one snapshot.
STORED = """
SELECT 'item' AS kind, id, price, stock, 0, name, sku FROM items
UNION ALL SELECT 'order', id, 0, 0, 0, status, NULL FROM orders
UNION ALL SELECT 'line', order_id, item_id, quantity, unit_price, NULL, NULL FROM order_lines
UNION ALL SELECT 'receipt', id, item_id, quantity, stock, NULL, NULL FROM receipts
"""
Row = tuple[Any, ...]

# Few of each, so that sequences meet themselves: a SKU that is taken, an order for what has run out.
SKUS = st.sampled_from([None, "A", "B"])
PRICES = st.sampled_from([0, 5, 1250])
STOCKS = st.sampled_from([5, 1, 0, MAX_AMOUNT])
NAMES = st.sampled_from(["Mug", "Kännchen", "Чашка", "杯"])
RECEIVED = st.sampled_from([1, 4, MAX_AMOUNT - 1, MAX_AMOUNT])
ORDERED = st.sampled_from([1, 2, 3, MAX_AMOUNT])
CHANGES = st.fixed_dictionaries({}, optional={"name": NAMES, "sku": SKUS, "price": PRICES})
# Mostly one that is there, at times one that was deleted, and one that there never will be.
ITEM = st.runner().flatmap(lambda machine: st.sampled_from(machine.items_to_choose_from()))
ORDER = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.model.orders)))
HELD = st.runner().flatmap(lambda machine: st.sampled_from(machine.model.held()))
# What is refused whatever the service has.
NO_ORDER = Refusal(404, "order-not-found", {"order_id": MAX_ID})
REFUSED_ANYWAY = st.sampled_from(
    [
        ("POST", "/items/", {"name": "", "price": 1, "sku": "A"}, INVALID),
        ("POST", "/items/", {"name": "Mug", "price": -1, "stock": 1}, INVALID),
        ("PATCH", "/items/{item}", {"stock": 99}, INVALID),
        ("PATCH", "/items/{item}", {"name": "Other", "price": "1"}, INVALID),
        ("POST", "/items/{item}/receipts", {"quantity": 0}, INVALID),
        ("POST", "/orders/", {"lines": []}, INVALID),
        ("POST", "/orders/", {"lines": [{"item_id": "1", "quantity": 1}]}, INVALID),
        ("GET", "/orders/?limit=0", None, INVALID),
        ("GET", f"/orders/{MAX_ID}", None, NO_ORDER),
        ("POST", f"/orders/{MAX_ID}/cancel", None, NO_ORDER),
    ]
)
EVERY_END = {
    "item created", "item changed", "item deleted", "stock received", "order placed", "order cancelled",
    "item shown", "order shown", "pages walked", "invalid-request", "item-not-found", "order-not-found",
    "sku-taken", "item-in-use", "unknown-items", "out-of-stock", "order-already-cancelled",
    "stock-limit-exceeded", "an order of which only a part is there", "a cancellation that does not fit",
}  # fmt: skip


class Client:
    """A kept connection; the standard library's, because httpx's own work would be most of the time."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        self.close = self._connection.close

    def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {} if body is None else {"content-type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, headers)
        answer = self._connection.getresponse()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


class InventoryMachine(RuleBasedStateMachine):
    """Requests to a running service, each foretold by the model."""

    def __init__(self, backend: Backend, client: Client) -> None:
        super().__init__()
        self.backend = backend
        self.client = client
        self.met = Counter[str]()
        self.model = Inventory()

    @initialize(
        stocks=st.lists(STOCKS, min_size=1, max_size=3), orders=st.lists(st.sampled_from([1, 2]), max_size=2)
    )
    def begin(self, stocks: list[int], orders: list[int]) -> None:
        """Nothing is there but a few items, and perhaps orders of all of them."""
        for table in ("order_lines", "orders", "receipts", "items"):
            self.backend.execute(f"DELETE FROM {table}")
        for stock in stocks:
            self.create_item("Mug", None, 1250, stock)
        for quantity in orders:
            self.place_order([(item, quantity) for item in self.model.items])

    # Items

    @rule(name=NAMES, sku=SKUS, price=PRICES, stock=STOCKS)
    def create_item(self, name: str, sku: str | None, price: int, stock: int) -> None:
        new = {"name": name, "sku": sku, "price": price, "stock": stock}
        shown = self.ask("POST", "/items/", new, 201, self.model.create_item(new), "item created")
        if shown is not None:
            assert shown.items() >= new.items()
            self.model.created_item(shown)

    @rule(item=ITEM, changes=CHANGES)
    def change_item(self, item: int, changes: Document) -> None:
        refusal = self.model.change_item(item, changes)
        shown = self.ask("PATCH", f"/items/{item}", changes, 200, refusal, "item changed")
        assert shown is None or shown == self.model.items[item]

    @rule(item=ITEM)
    def delete_item(self, item: int) -> None:
        self.ask("DELETE", f"/items/{item}", None, 204, self.model.delete_item(item), "item deleted")

    @rule(item=ITEM, quantity=RECEIVED)
    def receive(self, item: int, quantity: int) -> None:
        refusal = self.model.receive(item, quantity)
        body = {"quantity": quantity}
        shown = self.ask("POST", f"/items/{item}/receipts", body, 201, refusal, "stock received")
        if shown is not None:
            expected = {"item_id": item, "quantity": quantity, "stock": self.model.items[item]["stock"]}
            assert shown.items() >= expected.items()
            self.model.received(shown)

    @precondition(lambda machine: machine.model.held())
    @rule(item=HELD)
    def fill_the_shelf(self, item: int) -> None:
        """Receive all that fits: what an order holds then has no place to go back to."""
        missing = MAX_AMOUNT - self.model.items[item]["stock"]
        if missing:
            self.receive(item, missing)

    # Orders

    @precondition(lambda machine: machine.model.items)
    @rule(item=ITEM, quantity=ORDERED)
    def order_one_item(self, item: int, quantity: int) -> None:
        self.place_order([(item, quantity)])

    @rule(lines=st.lists(st.tuples(ITEM, ORDERED), min_size=1, max_size=4))
    def place_order(self, lines: list[tuple[int, int]]) -> None:
        refusal = self.model.place_order(lines)
        shown = self.ask("POST", "/orders/", {"lines": lines_of(lines)}, 201, refusal, "order placed")
        if shown is not None:
            self.model.placed_order(lines, shown)
            assert shown == self.model.orders[shown["id"]]
        elif refusal is not None and refusal.name == "out-of-stock":
            asked = {item for item, _ in lines}
            self.met["an order of which only a part is there"] += len(asked) > len(refusal.members["lines"])

    @precondition(lambda machine: machine.model.orders)
    @rule(order=ORDER)
    def cancel_order(self, order: int) -> None:
        refusal = self.model.cancel_order(order)
        shown = self.ask("POST", f"/orders/{order}/cancel", None, 200, refusal, "order cancelled")
        assert shown is None or shown == self.model.orders[order]
        self.met["a cancellation that does not fit"] += refusal is not None and "limit" in refusal.members

    # What changes nothing

    @rule(item=ITEM, limit=st.integers(1, 4))
    def look_at_items(self, item: int, limit: int) -> None:
        known = self.model.items.get(item)
        refusal = None if known else Refusal(404, "item-not-found", {"item_id": item})
        assert self.ask("GET", f"/items/{item}", None, 200, refusal, "item shown") == known
        self.walk_the_pages("items", limit)

    @precondition(lambda machine: machine.model.orders)
    @rule(order=ORDER, limit=st.integers(1, 4))
    def look_at_orders(self, order: int, limit: int) -> None:
        shown = self.ask("GET", f"/orders/{order}", None, 200, None, "order shown")
        assert shown == self.model.orders[order]
        self.walk_the_pages("orders", limit)

    def walk_the_pages(self, kind: str, limit: int) -> None:
        pages = list(self.pages(kind, limit))
        assert [row for page in pages for row in page] == self.known(kind)
        assert all(len(page) == limit for page in pages[:-1])
        self.met["pages walked"] += len(pages) > 1

    @rule(request=REFUSED_ANYWAY, item=ITEM)
    def ask_in_vain(self, request: tuple[str, str, object, Refusal], item: int) -> None:
        method, path, body, refusal = request
        self.ask(method, path.format(item=item), body, 200, refusal, "nothing")

    # After each of them

    @invariant()
    def lists_show_what_the_model_has(self) -> None:
        for kind in ("items", "orders"):
            assert [row for page in self.pages(kind, 100) for row in page] == self.known(kind)

    @invariant()
    def a_second_connection_sees_what_the_model_has(self) -> None:
        rows = self.backend.query(STORED)
        stock = {row[1]: row[3] for row in rows if row[0] == "item"}
        assert all(each >= 0 for each in stock.values())
        received = Counter[int]()
        for _, _, item, quantity, *_ in (row for row in rows if row[0] == "receipt"):
            received[item] += quantity
        status = {row[1]: row[5] for row in rows if row[0] == "order"}
        for _, order, item, quantity, *_ in (row for row in rows if row[0] == "line"):
            received[item] -= quantity * (status[order] == "open")
        assert {item: received[item] for item in stock} == stock
        # The first receipt of an item has a number that nobody was told.
        told = self.model.receipts
        rows = [
            ("receipt", 0, *row[2:]) if row[0] == "receipt" and row[1] not in told else row for row in rows
        ]
        assert sorted(rows, key=repr) == sorted(self.stored(), key=repr)

    def teardown(self) -> None:
        assert self.backend.query(BROKEN) == []

    # How to ask, and what to expect

    def ask(
        self, method: str, path: str, body: object, status: int, refusal: Refusal | None, done: str
    ) -> Document | None:
        """Make a request whose end the model has foretold; return the document, or None if it is refused."""
        answer = self.client.request(method, path, body)
        if refusal is not None:
            document = assert_problem(answer, refusal.status, refusal.name)
            assert document.items() >= refusal.members.items()
            self.met[refusal.name] += 1
            return None
        assert answer.status_code == status, answer.text
        self.met[done] += 1
        document = answer.json() if answer.content else {}
        assert isinstance(document, dict)
        return document

    def pages(self, kind: str, limit: int) -> Iterator[list[Document]]:
        """The pages of a list, each reached by the cursor of the one before."""
        path = f"/{kind}/?limit={limit}"
        while True:
            answer = self.client.request("GET", path)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            yield page["items"]
            if page["next_cursor"] is None:
                return
            path = f"/{kind}/?limit={limit}&cursor={page['next_cursor']}"

    def items_to_choose_from(self) -> list[int]:
        """Ids of items, the likelier the more often they come."""
        there = sorted(self.model.items)
        return [*there, *there, *sorted(self.model.used["items"]), MAX_ID]

    def known(self, kind: str) -> list[Document]:
        """The whole list as the model has it."""
        rows = self.model.items if kind == "items" else self.model.orders
        return [rows[each] for each in sorted(rows)]

    def stored(self) -> Iterator[Row]:
        """The rows that the model demands; the first receipt of an item is number 0."""
        for item in self.model.items.values():
            yield "item", item["id"], item["price"], item["stock"], 0, item["name"], item["sku"]
        for order in self.model.orders.values():
            yield "order", order["id"], 0, 0, 0, order["status"], None
            for line in order["lines"]:
                yield "line", order["id"], line["item_id"], line["quantity"], line["unit_price"], None, None
        for item_id, stock in self.model.first_stock.items():
            if stock:
                yield "receipt", 0, item_id, stock, stock, None, None
        for receipt, (item_id, quantity, stock) in self.model.receipts.items():
            yield "receipt", receipt, item_id, quantity, stock, None, None


@pytest.fixture(scope="module", params=["sqlite", "pg18"])
def inventory(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_servers: PostgresServers,
) -> Iterator[Service]:
    """A running service on a database that is emptied for each sequence."""
    leg: Leg = request.param
    folder = tmp_path_factory.mktemp(f"inventory-{leg}")
    backend = new_backend(leg, folder, postgres_servers)
    running = Service(backend, folder)
    running.env["UOW_SERVER__KEEP_ALIVE_TIMEOUT"] = "10m"  # the connection is kept, however slow the machine
    running.start()
    yield running
    running.close()
    backend.drop()


@pytest.fixture
def client(inventory: Service) -> Iterator[Client]:
    with closing(Client(inventory.port)) as made:
        yield made


def test_the_service_does_what_the_model_does(inventory: Service, client: Client) -> None:
    class Machine(InventoryMachine):
        def __init__(self) -> None:
            super().__init__(inventory.backend, client)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault of the service
        ),
    )
    inventory.backend.wait_until_at_rest()


def test_the_model_knows_each_way_a_request_can_end(inventory: Service, client: Client) -> None:
    """The rare ones in one sequence, whatever the random ones have met."""
    machine = InventoryMachine(inventory.backend, client)

    def after(*_: object) -> None:
        machine.lists_show_what_the_model_has()
        machine.a_second_connection_sees_what_the_model_has()

    after(machine.begin([5, 0, MAX_AMOUNT], [1]))  # its order is short of the second item
    mug, none, full = sorted(machine.model.items)
    after(machine.create_item("Kanne", "A", 5, 0))
    after(machine.create_item("Kanne", "A", 5, 1))
    after(machine.change_item(mug, {"sku": "A"}))
    after(machine.change_item(mug, {"sku": "B", "price": 7}))
    after(machine.place_order([(mug, 2), (full, 1), (mug, 1)]))
    after(machine.place_order([(mug, 1), (MAX_ID, 1), (none, 1)]))
    after(machine.delete_item(mug))
    after(machine.fill_the_shelf(full))
    (order,) = machine.model.orders
    after(machine.cancel_order(order))
    after(machine.order_one_item(full, 1))
    after(machine.cancel_order(order))
    after(machine.cancel_order(order))
    after(machine.receive(full, MAX_AMOUNT))
    after(machine.receive(none, 4))
    after(machine.delete_item(none))
    after(machine.receive(none, 4))
    after(machine.look_at_items(none, 1))
    after(machine.look_at_items(mug, 1))
    after(machine.look_at_orders(order, 1))
    after(machine.ask_in_vain(("GET", "/orders/?limit=0", None, INVALID), mug))
    after(machine.ask_in_vain(("GET", f"/orders/{MAX_ID}", None, NO_ORDER), mug))
    machine.teardown()
    assert {each for each in EVERY_END if not machine.met[each]} == set()
