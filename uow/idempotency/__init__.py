"""Requests that are done exactly once, however often they are sent: `IdempotencyMiddleware`.

A client that does not know whether its request was done sends it again with the same `Idempotency-Key`. The
key, and the answer to the first request with it, are rows of the service's own database, committed with the
work of that request by one COMMIT: there is no moment at which one of them is there without the other. The
behaviour is that of draft-ietf-httpapi-idempotency-key-header.

`create_table(op)` makes the table in an Alembic migration, `table(metadata)` in a `metadata.create_all()`;
`sweep(database)` removes the keys that have expired, and `sweeping(database, every=3600)` does so in a
lifespan.

Optional: the core knows no more of it than that a unit can have somebody to ask about its COMMIT.
"""

from ._middleware import IdempotencyMiddleware
from ._request import IN_USE, INVALID, REQUIRED, REUSED, TOO_LARGE
from ._sweep import sweep, sweep_sync, sweeping
from ._table import create_table, drop_table, table

__all__ = [
    "INVALID",
    "IN_USE",
    "REQUIRED",
    "REUSED",
    "TOO_LARGE",
    "IdempotencyMiddleware",
    "create_table",
    "drop_table",
    "sweep",
    "sweep_sync",
    "sweeping",
    "table",
]
