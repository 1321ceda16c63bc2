"""What both drivers of PostgreSQL have in common."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ._lease import Lease, Steps

_DEFERRABLE = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.conname), c.condeferred::text
FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
WHERE c.condeferrable"""


class PostgresWire:
    """The part of a wire that is SQL."""

    refusal_ends = True

    def begins_unseen(self) -> bool:
        """No: what a driver sends passes by `before_statement`."""
        return False

    def enter(self, lease: Lease) -> Steps:
        """Settings of a savepoint: the server forgets them at its end, and lets nobody unlock it before."""
        if lease.read_only:
            yield "SET LOCAL default_transaction_read_only = on"
            yield "SET LOCAL transaction_read_only = on"

    def leave(self, lease: Lease) -> Steps:
        """Nothing is left: the savepoint was rolled back."""
        yield from ()

    def check(self) -> Steps:
        """Let deferred constraints and triggers have their say, then put them back as they are declared."""
        deferrable = yield _DEFERRABLE
        if deferrable:
            yield "SET CONSTRAINTS ALL IMMEDIATE"
            yield "SET CONSTRAINTS ALL DEFERRED"
            at_once = [_text(name) for name, deferred in deferrable if _text(deferred) == "false"]
            if at_once:
                yield f"SET CONSTRAINTS {', '.join(at_once)} IMMEDIATE"

    def spoil(self) -> Steps:
        with suppress(Exception):  # that is its purpose
            yield "SELECT 1/0"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
