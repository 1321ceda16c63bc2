"""What can go wrong with items."""

from __future__ import annotations

from collections.abc import Sequence

from api.models import MAX_AMOUNT
from api.problems import DomainError
from uow.problems import Problem


class ItemNotFound(DomainError):
    problem = Problem("item-not-found", "There is no such item", 404)

    def __init__(self, item_id: int) -> None:
        super().__init__(f"There is no item {item_id}.", item_id=item_id)


class UnknownItems(DomainError):
    """Something else, such as an order, refers to items that do not exist."""

    problem = Problem("unknown-items", "There are no such items", 422)

    def __init__(self, item_ids: Sequence[int]) -> None:
        names = ", ".join(map(str, item_ids))
        super().__init__(f"There is no item {names}.", item_ids=list(item_ids))


class SkuTaken(DomainError):
    problem = Problem("sku-taken", "Another item has this SKU", 409)

    def __init__(self, sku: str | None) -> None:
        super().__init__(f"Another item has the SKU {sku}.", sku=sku)


class ItemInUse(DomainError):
    problem = Problem("item-in-use", "Orders refer to the item", 409)

    def __init__(self, item_id: int) -> None:
        super().__init__(f"Item {item_id} stays, because orders refer to it.", item_id=item_id)


class StockLimitExceeded(DomainError):
    problem = Problem("stock-limit-exceeded", "More stock than one item can have", 409)

    def __init__(self, item_id: int, *, stock: int, quantity: int) -> None:
        super().__init__(
            f"Item {item_id} has {stock} on hand; {quantity} more would pass {MAX_AMOUNT}.",
            item_id=item_id,
            stock=stock,
            quantity=quantity,
            limit=MAX_AMOUNT,
        )
