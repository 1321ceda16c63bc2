"""The connection class of our engines: SQLAlchemy's own, with the engine's events at hand."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine


class UnitConnection(Connection):
    """Uses its engine's listeners as they are, until somebody listens to this very connection.

    SQLAlchemy joins the listeners of the engine with those of the connection anew for each checkout and
    each kind of event, which was 4 % of a short request. Nothing depends on this class but that time.
    """

    _joined: Any = None

    def __init__(self, engine: Engine, *args: Any, **options: Any) -> None:
        super().__init__(engine, *args, **options)
        self._joined = self.dispatch
        _set_dispatch(self, engine.dispatch)

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
