"""What can go wrong with orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from api.problems import DomainError
from uow.problems import Problem


@dataclass(frozen=True, slots=True)
class Shortage:
    """More of an item was asked for than is on hand."""

    item_id: int
    requested: int
    available: int


class OutOfStock(DomainError):
    """An order asks for more than is on hand; `lines` says of which items. Nothing was ordered."""

    problem = Problem("out-of-stock", "Out of stock", 409)

    def __init__(self, lines: Sequence[Shortage]) -> None:
        names = ", ".join(str(line.item_id) for line in lines)
        super().__init__(f"Not enough on hand of item {names}.", lines=[asdict(line) for line in lines])


class OrderNotFound(DomainError):
    """No order has this id."""

    problem = Problem("order-not-found", "There is no such order", 404)

    def __init__(self, order_id: int) -> None:
        super().__init__(f"There is no order {order_id}.", order_id=order_id)


class OrderAlreadyCancelled(DomainError):
    """An order is cancelled once; its stock was put back then."""

    problem = Problem("order-already-cancelled", "The order is cancelled already", 409)

    def __init__(self, order_id: int) -> None:
        super().__init__(f"Order {order_id} is cancelled already.", order_id=order_id)
