"""What can go wrong with items."""

from __future__ import annotations

from collections.abc import Sequence

from api.models import MAX_AMOUNT
from api.problems import DomainError
from uow.problems import Problem


class ItemNotFound(DomainError):
    """No item has this id: it was never given out, or its item was deleted."""

    problem = Problem("item-not-found", "There is no such item", 404)

    def __init__(self, item_id: int) -> None:
        super().__init__(f"There is no item {item_id}.", item_id=item_id)


class ReceiptNotFound(DomainError):
    """No receipt of this item has this id."""

    problem = Problem("receipt-not-found", "There is no such receipt", 404)

    def __init__(self, item_id: int, receipt_id: int) -> None:
        super().__init__(
            f"Item {item_id} has no receipt {receipt_id}.", item_id=item_id, receipt_id=receipt_id
        )


class UnknownItems(DomainError):
    """An order names items that do not exist; `item_ids` lists them. Nothing was ordered."""

    problem = Problem("unknown-items", "There are no such items", 422)

    def __init__(self, item_ids: Sequence[int]) -> None:
        names = ", ".join(map(str, item_ids))
        super().__init__(f"There is no item {names}.", item_ids=list(item_ids))


class SkuTaken(DomainError):
    """No two items have the same SKU; choose another, or change the item that has it."""

    problem = Problem("sku-taken", "Another item has this SKU", 409)

    def __init__(self, sku: str | None) -> None:
        super().__init__(f"Another item has the SKU {sku}.", sku=sku)


class ItemInUse(DomainError):
    """An item stays as long as an order refers to it, also a cancelled one."""

    problem = Problem("item-in-use", "Orders refer to the item", 409)

    def __init__(self, item_id: int) -> None:
        super().__init__(f"Item {item_id} stays, because orders refer to it.", item_id=item_id)


class StockLimitExceeded(DomainError):
    """The stock of one item has a limit, and the request would pass it; nothing was added."""

    problem = Problem("stock-limit-exceeded", "More stock than one item can have", 409)

    def __init__(self, item_id: int, *, stock: int, quantity: int) -> None:
        super().__init__(
            f"Item {item_id} has {stock} on hand; {quantity} more would pass {MAX_AMOUNT}.",
            item_id=item_id,
            stock=stock,
            quantity=quantity,
            limit=MAX_AMOUNT,
        )
