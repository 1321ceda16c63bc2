"""What can be watched of a unit: pass an observer to `Database(url, observer=...)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._unit import Outcome, UnitOfWork

__all__ = ["Settlement", "UnitObserver"]


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a unit ended, why, and how long it took; all times are seconds."""

    outcome: Outcome
    reason: str | None
    """Why it was not committed; None if it was.

    The name of the problem where it was the database's doing or a misuse ("serialization-failure",
    "unit-doomed", "time-is-up"), "rollback-only", "cancelled", the class of the exception that the app is
    handling, or "answer" for no more than the status.
    """
    attempt: int
    """Which attempt of its request it was, from 1."""
    lasted: float
    """From when its session was made until now; 0 if there never was one."""
    waited: float
    """Of these, until it had its connection; 0 if it never had one."""
    settled_for: float
    """Of these, from the judgement of its answer until COMMIT or ROLLBACK was acknowledged."""


class UnitObserver:
    """Is told what the units of a database do: override what you want to know.

    Nothing is measured when there is none. The calls come in the context of the request, so that context
    variables can be read; those of a sync session come from its worker thread. What an observer raises is
    logged and changes nothing.
    """

    def opened(self, unit: UnitOfWork) -> None:
        """The unit has a session, and no connection yet."""

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        """The unit has its connection, after `waited` seconds, and gives it back before `settled()`.

        It has waited for a place in the pool, for a new connection if one was made, and on SQLite for the
        turn of a writer. A reader tells it again when it goes on inside of a transaction.
        """

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        """The unit sent something to the database that took `seconds` and may have failed.

        That is each statement, and BEGIN, COMMIT and ROLLBACK where they are trips of their own.
        """

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        """The unit is over and `unit.outcome` is final; once per unit, also for one without a session."""

    def client_gone(self, unit: UnitOfWork) -> None:
        """The client of the unit's request left before its answer was complete."""
