"""Every error that `uow` raises.

    UnitOfWorkError
    ├── NoUnitOfWork          there is no unit here: outside a request, or after its answer
    ├── UnitOfWorkClosed      the unit is over: settled, or rolled back by the handler
    ├── UnitOfWorkDoomed      the database refused a statement, so the unit cannot commit
    ├── MixedSessions         one unit was asked for a sync and an async session
    ├── ConcurrentUse         two tasks or threads are inside one session
    ├── ReadOnlyUnitOfWork    a read-only unit was asked to write
    ├── SettleRefused         a handler tried to commit, begin, reset or invalidate
    ├── SendRefused           a WebSocket was told something by a unit that is not settled
    ├── DeadlineExceeded      a request was not answered within its deadline
    ├── WouldDeadlock         a unit inside a unit would wait for its own outer unit
    └── OutcomeUnknown        whether the COMMIT took effect could not be learnt

What the database itself refuses arrives as SQLAlchemy's own exceptions (`sqlalchemy.exc`), unchanged.
"""

__all__ = [
    "ConcurrentUse",
    "DeadlineExceeded",
    "MixedSessions",
    "NoUnitOfWork",
    "OutcomeUnknown",
    "ReadOnlyUnitOfWork",
    "SendRefused",
    "SettleRefused",
    "UnitOfWorkClosed",
    "UnitOfWorkDoomed",
    "UnitOfWorkError",
    "WouldDeadlock",
]


class UnitOfWorkError(Exception):
    """The root of the tree above."""


class NoUnitOfWork(UnitOfWorkError):
    """There is no unit of work here: the code runs outside a request, or after its answer."""


class UnitOfWorkClosed(UnitOfWorkError):
    """The unit of work is over, and its session, results and streams with it."""


class UnitOfWorkDoomed(UnitOfWorkError):
    """The database refused a statement of this unit, so nothing of it can be committed."""


class MixedSessions(UnitOfWorkError):
    """One unit was asked for two sessions or two connections: two transactions that look like one."""


class ConcurrentUse(UnitOfWorkError):
    """Two tasks or threads are inside one session at the same time."""


class DeadlineExceeded(UnitOfWorkError):
    """A request was not answered within the deadline of its unit; nothing of it was kept."""


class ReadOnlyUnitOfWork(UnitOfWorkError):
    """A read-only unit was asked to write, and the database refused it."""


class SendRefused(UnitOfWorkError):
    """A WebSocket message was sent inside a unit that may yet be rolled back."""


class SettleRefused(UnitOfWorkError):
    """A handler tried to settle its unit; only the unit's owner does that."""


class WouldDeadlock(UnitOfWorkError):
    """A unit inside a unit would wait for a lock that its own outer unit holds."""


class OutcomeUnknown(UnitOfWorkError):
    """Nobody could learn whether the COMMIT took effect; look before you try again."""
