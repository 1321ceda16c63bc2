"""Events that leave if and only if their unit committed: a transactional outbox, and its relay.

    @event("order.placed", subject="orders/{order_id}")
    @dataclass
    class OrderPlaced:
        order_id: int

`publish(OrderPlaced(7))` writes the event in the running unit; a `Relay` takes it to each `Destination` of
the `Outbox`, at least once and, for each subject, in the order of the commits.

Optional: the core knows nothing of it.
"""

from ._declare import event
from ._message import CloudEvent, Destination, GiveUp, TryLater
from ._publish import Outbox, publish
from ._relay import Backoff, Relay
from ._store import Owed, Which, discard, owed, owed_elsewhere, retry
from ._table import create_table, drop_table, table
from ._webhook import Refused, Stdout, Webhook, secret_of

__all__ = [
    "Backoff",
    "CloudEvent",
    "Destination",
    "GiveUp",
    "Outbox",
    "Owed",
    "Refused",
    "Relay",
    "Stdout",
    "TryLater",
    "Webhook",
    "Which",
    "create_table",
    "discard",
    "drop_table",
    "event",
    "owed",
    "owed_elsewhere",
    "publish",
    "retry",
    "secret_of",
    "table",
]
