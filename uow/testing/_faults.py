"""What a test has asked to go wrong."""

from __future__ import annotations

from dataclasses import dataclass

from ..problems import Condition


@dataclass(frozen=True)
class Fault:
    """One thing that shall go wrong, once."""

    error: Condition | BaseException
    name: str
    kept: bool = False
    """Whether the COMMIT takes effect and only its answer is lost."""

    @property
    def drops(self) -> bool:
        """Whether the connection is gone afterwards."""
        return self.error is Condition.CONNECTION_LOST


class Faults:
    """The faults that wait for their moment."""

    def __init__(self) -> None:
        self._in_commit: list[Fault] = []
        self._in_statement: dict[int, Fault] = {}
        self._anywhere: list[Fault] = []
        self._statements = 0

    def in_commit(self, fault: Fault) -> None:
        """Let it happen in the next COMMIT that has none yet."""
        self._in_commit.append(fault)

    def in_statement(self, n: int, fault: Fault) -> None:
        """Let it happen in the n-th statement from now; 1 is the next."""
        if n < 1:
            raise ValueError(f"the statements are counted from 1, not from {n}")
        self._in_statement[self._statements + n] = fault

    def anywhere(self, fault: Fault) -> None:
        """Let it happen in the next statement or COMMIT."""
        self._anywhere.append(fault)

    def at_statement(self) -> Fault | None:
        """Count a statement; what shall go wrong in it."""
        self._statements += 1
        return self._in_statement.pop(self._statements, None) or self._next(self._anywhere)

    def at_commit(self) -> Fault | None:
        """What shall go wrong in this COMMIT."""
        return self._next(self._in_commit) or self._next(self._anywhere)

    def waiting(self) -> list[str]:
        """The names of those that have not happened."""
        return [fault.name for fault in (*self._in_commit, *self._in_statement.values(), *self._anywhere)]

    @staticmethod
    def _next(faults: list[Fault]) -> Fault | None:
        return faults.pop(0) if faults else None
