"""The connection class of our engines: SQLAlchemy's own, which takes turns and has its events at hand."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from ._watch import work_of


def in_turn(plain: Any) -> Any:
    """A method that runs a statement: a call of the unit's session, if the connection is one's."""

    @functools.wraps(plain)
    def call(self: Connection, *args: Any, **kwargs: Any) -> Any:
        work = work_of(self)
        if work is None:
            return plain(self, *args, **kwargs)
        if work.is_inside():
            return work.execute(plain, self, *args, **kwargs)
        work.enter_open()
        try:
            result = plain(self, *args, **kwargs)
            work.streams |= bool(getattr(result.context, "_is_server_side", False))
            work.keep(result)
            return result
        finally:
            work.give()

    return call


class UnitConnection(Connection):
    """Takes turns with the session whose connection it is, and finds its listeners more quickly.

    SQLAlchemy joins the listeners of the engine with those of the connection anew for each checkout and
    each kind of event, which was 4 % of a short request; here the engine's are used as they are, until
    somebody listens to this very connection.
    """

    _joined: Any = None

    def __init__(self, engine: Engine, *args: Any, **options: Any) -> None:
        super().__init__(engine, *args, **options)
        self._joined = self.dispatch
        _set_dispatch(self, engine.dispatch)

    if not TYPE_CHECKING:  # the signatures are SQLAlchemy's, overloads included
        execute = in_turn(Connection.execute)
        exec_driver_sql = in_turn(Connection.exec_driver_sql)

    @property
    def _has_events(self) -> bool:
        """Whether somebody listens to this connection."""
        return self.dispatch is self._joined

    @_has_events.setter
    def _has_events(  # pyright: ignore[reportIncompatibleVariableOverride]  # a plain attribute there
        self, _: bool
    ) -> None:
        """What `event.listen` sets before it adds a listener, which must not reach other connections."""
        _set_dispatch(self, self._joined)


def _set_dispatch(connection: Any, dispatch: Any) -> None:
    connection.dispatch = dispatch


def use_unit_connections(engine: Any) -> None:
    """Make the engine hand out this class."""
    engine._connection_cls = UnitConnection
