"""The inventory as a few dictionaries: what the service must answer, and what it must then have.

Each request is a method. It returns the refusal that the service must answer with, and leaves the model as
it is; or None, and then the model has changed, or waits for the id that the service gives what is new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from api.models import MAX_AMOUNT

Document = dict[str, Any]
Lines = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Refusal:
    """A problem document: its status, its name, and members that it must have."""

    status: int
    name: str
    members: Document = field(default_factory=dict)


INVALID = Refusal(422, "invalid-request")


@dataclass
class Inventory:
    """Items and orders as the service shows them, by id, and the quantities that were received."""

    items: dict[int, Document] = field(default_factory=dict)
    orders: dict[int, Document] = field(default_factory=dict)
    receipts: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """The item, the quantity and the stock with it of each receipt whose id a client was told."""
    first_stock: dict[int, int] = field(default_factory=dict)
    """What each item came with: a receipt too, but nobody was told its id."""
    used: dict[Literal["items", "orders", "receipts"], set[int]] = field(
        default_factory=lambda: {"items": set(), "orders": set(), "receipts": set()}
    )
    """Every id that was ever given out: none comes twice."""

    # Items

    def create_item(self, new: Document) -> Refusal | None:
        return self._sku_taken(new["sku"], by=None)

    def created_item(self, shown: Document) -> None:
        self._number("items", shown["id"])
        self.items[shown["id"]] = shown
        self.first_stock[shown["id"]] = shown["stock"]

    def change_item(self, item_id: int, changes: Document) -> Refusal | None:
        if item_id not in self.items:
            return _no_item(item_id)
        if refusal := self._sku_taken(changes.get("sku"), by=item_id):
            return refusal
        self.items[item_id] |= changes
        return None

    def delete_item(self, item_id: int) -> Refusal | None:
        if item_id not in self.items:
            return _no_item(item_id)
        if any(line["item_id"] == item_id for order in self.orders.values() for line in order["lines"]):
            return Refusal(409, "item-in-use", {"item_id": item_id})
        del self.items[item_id], self.first_stock[item_id]
        self.receipts = {each: what for each, what in self.receipts.items() if what[0] != item_id}
        return None

    def receive(self, item_id: int, quantity: int) -> Refusal | None:
        if item_id not in self.items:
            return _no_item(item_id)
        stock = self.items[item_id]["stock"]
        if stock + quantity > MAX_AMOUNT:
            return _too_much(item_id, stock, quantity)
        self.items[item_id]["stock"] += quantity
        return None

    def received(self, shown: Document) -> None:
        self._number("receipts", shown["id"])
        self.receipts[shown["id"]] = (shown["item_id"], shown["quantity"], shown["stock"])

    # Orders

    def place_order(self, lines: Lines) -> Refusal | None:
        wanted = _summed(lines)
        if unknown := sorted(wanted.keys() - self.items.keys()):
            return Refusal(422, "unknown-items", {"item_ids": unknown})
        short = [
            {"item_id": item_id, "requested": wanted[item_id], "available": self.items[item_id]["stock"]}
            for item_id in sorted(wanted)
            if wanted[item_id] > self.items[item_id]["stock"]
        ]
        return Refusal(409, "out-of-stock", {"lines": short}) if short else None

    def placed_order(self, lines: Lines, shown: Document) -> None:
        wanted = _summed(lines)
        prices = {item_id: self.items[item_id]["price"] for item_id in wanted}
        self._number("orders", shown["id"])
        self.orders[shown["id"]] = {
            "id": shown["id"],
            "status": "open",
            "lines": [
                {"item_id": item_id, "quantity": wanted[item_id], "unit_price": prices[item_id]}
                for item_id in sorted(wanted)
            ],
            "created_at": shown["created_at"],
        }
        for item_id, quantity in wanted.items():
            self.items[item_id]["stock"] -= quantity

    def cancel_order(self, order_id: int) -> Refusal | None:
        order = self.orders.get(order_id)
        if order is None:
            return Refusal(404, "order-not-found", {"order_id": order_id})
        if order["status"] == "cancelled":
            return Refusal(409, "order-already-cancelled", {"order_id": order_id})
        for line in order["lines"]:
            stock = self.items[line["item_id"]]["stock"]
            if stock + line["quantity"] > MAX_AMOUNT:
                return _too_much(line["item_id"], stock, line["quantity"])
        for line in order["lines"]:
            self.items[line["item_id"]]["stock"] += line["quantity"]
        order["status"] = "cancelled"
        return None

    def held(self) -> list[int]:
        """The items that open orders hold."""
        lines = (
            line for order in self.orders.values() if order["status"] == "open" for line in order["lines"]
        )
        return sorted({line["item_id"] for line in lines})

    def _sku_taken(self, sku: str | None, *, by: int | None) -> Refusal | None:
        others = (item["sku"] for item_id, item in self.items.items() if item_id != by)
        return None if sku is None or sku not in others else Refusal(409, "sku-taken", {"sku": sku})

    def _number(self, kind: Literal["items", "orders", "receipts"], number: int) -> None:
        assert number not in self.used[kind], f"{kind}: {number} was given out before"
        self.used[kind].add(number)


def _summed(lines: Lines) -> Counter[int]:
    wanted = Counter[int]()
    for item_id, quantity in lines:
        wanted[item_id] += quantity
    return wanted


def _no_item(item_id: int) -> Refusal:
    return Refusal(404, "item-not-found", {"item_id": item_id})


def _too_much(item_id: int, stock: int, quantity: int) -> Refusal:
    members = {"item_id": item_id, "stock": stock, "quantity": quantity, "limit": MAX_AMOUNT}
    return Refusal(409, "stock-limit-exceeded", members)
