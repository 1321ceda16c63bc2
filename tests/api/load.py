"""Clients that order, cancel and receive at the same time, and remember what they were told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import httpx

from tests.api.service import BROKEN, lines_of
from tests.support.backends import Backend
from tests.support.wait import LIMIT

Lines = dict[int, int]


@dataclass
class Ledger:
    """What clients were told, and what they asked for without being told how it went."""

    receipts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The item and the quantity of each receipt that was answered with 201."""
    orders: dict[int, Lines] = field(default_factory=dict)
    """Item ids and quantities of each order that was answered with 201."""
    cancelled: set[int] = field(default_factory=set)
    """The orders whose cancellation was answered with 200."""
    unanswered: set[int] = field(default_factory=set)
    """The orders of whose cancellation nobody knows."""
    answers: Counter[int] = field(default_factory=Counter)
    """How often each status came."""

    @property
    def acknowledged(self) -> int:
        return len(self.receipts) + len(self.orders) + len(self.cancelled)

    def __iadd__(self, other: Ledger) -> Ledger:
        self.receipts |= other.receipts
        self.orders |= other.orders
        self.cancelled |= other.cancelled
        self.unanswered |= other.unanswered
        self.answers += other.answers
        return self


class Customer(threading.Thread):
    """One client; it goes on for `steps`, or until the server goes away."""

    def __init__(self, base_url: str, items: Sequence[int], *, seed: int, steps: int) -> None:
        super().__init__(name=f"customer {seed}", daemon=True)
        self.ledger = Ledger()
        self.failure: Exception | None = None
        self._base_url = base_url
        self._items = items
        self._random = Random(seed)
        self._steps = steps
        self._open: list[int] = []

    def run(self) -> None:
        try:
            with httpx.Client(
                base_url=self._base_url, timeout=2 * LIMIT, trust_env=False, verify=False
            ) as client:
                for _ in range(self._steps):
                    self._step(client)
        except Exception as error:  # the test has to know, whatever it is
            self.failure = error

    def _step(self, client: httpx.Client) -> None:
        choice = self._random.random()
        if choice < 0.2:
            self._receive(client)
        elif choice < 0.5 and self._open:
            self._cancel(client)
        else:
            self._order(client)

    def _receive(self, client: httpx.Client) -> None:
        item, quantity = self._random.choice(self._items), self._random.randint(1, 4)
        answer = self._post(client, f"/items/{item}/receipts", {"quantity": quantity})
        if answer.status_code == 201:
            self.ledger.receipts[answer.json()["id"]] = (item, quantity)

    def _order(self, client: httpx.Client) -> None:
        # In any order, and an item may come twice: the service has to add up and to sort.
        lines = [
            (self._random.choice(self._items), self._random.randint(1, 3))
            for _ in range(self._random.randint(1, 4))
        ]
        answer = self._post(client, "/orders/", {"lines": lines_of(lines)})
        if answer.status_code == 201:
            wanted = Counter[int]()
            for item, quantity in lines:
                wanted[item] += quantity
            order_id = answer.json()["id"]
            self.ledger.orders[order_id] = dict(wanted)
            self._open.append(order_id)

    def _cancel(self, client: httpx.Client) -> None:
        order_id = self._open.pop(self._random.randrange(len(self._open)))
        self.ledger.unanswered.add(order_id)
        answer = self._post(client, f"/orders/{order_id}/cancel", None)
        self.ledger.unanswered.discard(order_id)
        if answer.status_code == 200:
            self.ledger.cancelled.add(order_id)

    def _post(self, client: httpx.Client, path: str, body: object) -> httpx.Response:
        answer = client.post(path, json=body)
        self.ledger.answers[answer.status_code] += 1
        return answer


class Crowd:
    """Customers at work on the same few items."""

    def __init__(self, base_url: str, items: Sequence[int], *, customers: int, steps: int, seed: int) -> None:
        self._customers = [
            Customer(base_url, items, seed=seed + number, steps=steps) for number in range(customers)
        ]

    def start(self) -> None:
        for customer in self._customers:
            customer.start()

    @property
    def acknowledged(self) -> int:
        """How much they have been told so far."""
        return sum(customer.ledger.acknowledged for customer in self._customers)

    @property
    def failures(self) -> list[Exception]:
        return [customer.failure for customer in self._customers if customer.failure is not None]

    def finish(self) -> Ledger:
        """Wait for all of them, and return what they were told together."""
        total = Ledger()
        for customer in self._customers:
            customer.join(10 * LIMIT)
            assert not customer.is_alive(), f"{customer.name} waits for ever"
            total += customer.ledger
        return total


@contextmanager
def watched(backend: Backend) -> Iterator[list[object]]:
    """Look for a broken promise again and again, each time in one snapshot; yields what each look found."""
    found: list[object] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                found.append(backend.query(BROKEN))
            except Exception as error:  # whatever it is, the test has to fail for it
                found.append(error)
            stop.wait(0.02)

    watcher = threading.Thread(target=watch, name="watcher", daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join(LIMIT)


def assert_kept(backend: Backend, ledger: Ledger) -> None:
    """Everything that was acknowledged is in the database, and every promise about stock holds."""
    assert backend.query(BROKEN) == []
    receipts = {row[0]: row[1:] for row in backend.query("SELECT id, item_id, quantity FROM receipts")}
    assert {each: receipts.get(each) for each in ledger.receipts} == ledger.receipts
    lines: dict[int, Lines] = {}
    for order_id, item_id, quantity in backend.query("SELECT order_id, item_id, quantity FROM order_lines"):
        lines.setdefault(order_id, {})[item_id] = quantity
    assert {each: lines.get(each) for each in ledger.orders} == ledger.orders
    status: dict[int, str] = dict(backend.query("SELECT id, status FROM orders"))
    for order_id in ledger.orders.keys() - ledger.unanswered:
        assert status[order_id] == ("cancelled" if order_id in ledger.cancelled else "open"), order_id


def assert_nothing_else(backend: Backend, ledger: Ledger, *, first_receipts: int) -> None:
    """What a client was told had failed is not in the database."""
    assert {row[0] for row in backend.query("SELECT id FROM orders")} == set(ledger.orders)
    assert backend.count("receipts") == first_receipts + len(ledger.receipts)
