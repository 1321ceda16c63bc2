"""What a test sees of the units that ran in it, and what it can let go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._unit import Outcome, UnitOfWork
from ..problems import Condition
from ._errors import check
from ._faults import Fault, Faults


@dataclass(frozen=True)
class SettledUnit:
    """A unit that has ended."""

    name: str
    """"POST /items/" for a request; else what `new_unit(name=...)` says."""
    outcome: Outcome
    read_only: bool
    is_request: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}{' (read-only)' if self.read_only else ''}"


class Probe:
    """Looks into a test's units, and makes them fail.

    `units` are those that have ended, in order. `callbacks` are what the committed ones had registered
    with `on_commit`, in order.
    """

    def __init__(self, dialect: str, *, run_callbacks: bool) -> None:
        self.units: list[SettledUnit] = []
        self.callbacks: list[Callable[[], Any]] = []
        self.faults = Faults()
        self._dialect = dialect
        self._run_callbacks = run_callbacks

    def assert_committed(self, times: int | None = None, *, name: str | None = None) -> None:
        """Fail unless the last unit that could write was committed; with `times`, unless so many were.

        `name` looks at the units of that name alone: "POST /items/".
        """
        __tracebackhide__ = True
        self._assert("committed", times, name)

    def assert_rolled_back(self, times: int | None = None, *, name: str | None = None) -> None:
        """The same for units of which nothing was kept."""
        __tracebackhide__ = True
        self._assert("rolled_back", times, name)

    def fail_commit(self, error: Condition | BaseException) -> None:
        """Let the database refuse the next COMMIT.

        `error` is an exception of the driver's, or what it shall mean: `Condition.SERIALIZATION` becomes
        the exception that the driver in use has for it. Raises ValueError if the database has none.
        """
        check(self._dialect, error)
        self.faults.in_commit(Fault(error, f"fail_commit({error!r})"))

    def fail_statement(self, n: int, error: Condition | BaseException) -> None:
        """Let the database refuse the n-th statement from now on; 1 is the next. `error` as above.

        BEGIN, COMMIT, ROLLBACK and what sets or ends a savepoint do not count.
        """
        check(self._dialect, error)
        self.faults.in_statement(n, Fault(error, f"fail_statement({n}, {error!r})"))

    def drop_connection(self, *, during_commit: bool = False, kept: bool = False) -> None:
        """Lose the connection at the next statement or COMMIT.

        `during_commit` waits for a COMMIT, whose outcome is then unknown to the unit; with `kept` the
        database has done it, and only the answer is lost.
        """
        if kept and not during_commit:
            raise ValueError("kept= is about a COMMIT: say during_commit=True as well")
        fault = Fault(Condition.CONNECTION_LOST, "drop_connection()", kept)
        if during_commit:
            self.faults.in_commit(fault)
        else:
            self.faults.anywhere(fault)

    def settled(self, unit: UnitOfWork) -> None:
        """A unit has ended: remember it, and what it does after its commit."""
        assert unit.outcome is not None
        read_only = unit.options.read_only
        self.units.append(SettledUnit(unit.name, unit.outcome, read_only, unit.is_request))
        if unit.outcome == "committed":
            waiting = unit._callbacks  # pyright: ignore[reportPrivateUsage]  # nobody else looks at them
            self.callbacks.extend(call for call, _ in waiting)
            if not self._run_callbacks:
                waiting.clear()

    def _assert(self, outcome: Outcome, times: int | None, name: str | None) -> None:
        __tracebackhide__ = True
        units = [unit for unit in self.units if not unit.read_only and name in (None, unit.name)]
        found = sum(unit.outcome == outcome for unit in units)
        if found == times or (times is None and units and units[-1].outcome == outcome):
            return
        wanted = "the last unit" if times is None else f"{times} units"
        of_name = "" if name is None else f" named {name!r}"
        seen = "\n".join(f"  {unit}" for unit in self.units) or "  none"
        raise AssertionError(f"{wanted}{of_name} should be {outcome}; the units that ended:\n{seen}")
