"""What can be watched of a unit: pass an observer to `Database(url, observer=...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ._unit import UnitOfWork

__all__ = ["UnitObserver"]


class UnitObserver(Protocol):
    """Is told what the units of a database do; nothing is measured when there is none.

    The calls come in the context of the request, so that context variables can be read; those of a sync
    session come from its worker thread. What an observer raises is logged and changes nothing.
    """

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        """The unit has its connection, after `waited` seconds, and gives it back before `settled()`.

        It has waited for a place in the pool, for a new connection if one was made, and on SQLite for the
        turn of a writer. A reader tells it again when it goes on inside of a transaction.
        """

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        """The unit sent something to the database that took `seconds` and may have failed.

        That is each statement, and BEGIN, COMMIT and ROLLBACK where they are trips of their own.
        """

    def settled(self, unit: UnitOfWork) -> None:
        """The unit is over and `unit.outcome` is final; once per unit."""

    def client_gone(self, unit: UnitOfWork) -> None:
        """The client of the unit's request left before its answer was complete."""
