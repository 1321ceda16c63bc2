"""A unit of its own: for background tasks, scripts, WebSocket messages, audit rows."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING

from ._context import Block, Place, current_place, enter, leave, unit_around
from ._options import UnitOptions, checked_isolation
from ._unit import UnitOfWork

if TYPE_CHECKING:
    from .database import Database


def new_unit(
    *, read_only: bool = False, isolation: str | None = None, snapshot: bool = False, name: str | None = None
) -> NewUnit:
    """A unit of its own on the database of the running app: see `Database.new_unit`.

    Raises NoUnitOfWork where no app's database is at hand; write `database.new_unit()` there.
    """
    database = current_place().database
    return NewUnit(
        database, UnitOptions(read_only, checked_isolation(isolation), frozenset(), snapshot), name
    )


class NewUnit:
    """A unit as a block, `async with` or `with`: its end commits, an exception rolls back."""

    def __init__(self, database: Database, options: UnitOptions, name: str | None) -> None:
        self._database = database
        self._options = options
        self._name = name or "new_unit()"
        self._entered: tuple[UnitOfWork, Token[Place]] | None = None

    async def __aenter__(self) -> UnitOfWork:
        return self._enter(sync_only=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unit, token = self._exit()
        try:
            await unit.settle(commit=error is None)
        finally:
            _leave(token)
            await unit.run_callbacks()

    def __enter__(self) -> UnitOfWork:
        return self._enter(sync_only=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unit, token = self._exit()
        try:
            unit.settle_sync(commit=error is None)
        finally:
            _leave(token)
            unit.run_callbacks_sync()

    def _enter(self, *, sync_only: bool) -> UnitOfWork:
        if self._entered is not None:
            raise RuntimeError("a unit is entered once; call new_unit() again for another")
        unit = UnitOfWork(
            self._database,
            self._name,
            lambda: self._options,
            sync_only=sync_only,
            outer=unit_around(),
        )
        self._entered = unit, enter(Block(self._database, unit))
        return unit

    def _exit(self) -> tuple[UnitOfWork, Token[Place]]:
        assert self._entered is not None
        return self._entered


def _leave(token: Token[Place]) -> None:
    """Go back; a generator that holds the block open may be closed in another context than it was begun."""
    with suppress(ValueError):
        leave(token)
