"""The connection class of our engines: SQLAlchemy's own, which takes turns and has its events at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from ._watch import work_of


def in_turn(plain: Any, *, has_result: bool = True) -> Any:
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
            if has_result:
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


def _run(connection: Any, statement: str, parameters: Any) -> int:
    """Run a statement of ours, which answers no rows, in the driver's words: how many rows it has changed.

    What `exec_driver_sql` does, listeners included, without the result, which is a quarter of what it costs:
    by SQLAlchemy's own way for sequences and defaults, which has no public name.
    """
    transaction = connection.get_nested_transaction() or connection.get_transaction()
    if transaction is None or not transaction.is_active or connection._trans_context_manager:
        # It begins a transaction, or says why it cannot.
        return int(connection.exec_driver_sql(statement, parameters).rowcount)
    dialect, link, options = connection.dialect, connection.connection, connection.get_execution_options()
    if "stream_results" in options:
        options = options.union({"stream_results": False})
    try:
        context = dialect.execution_ctx_cls._init_statement(
            dialect, connection, link, options, statement, [parameters]
        )
        context.pre_exec()
    except BaseException as error:  # a cursor is a trip to some drivers
        context = connection._handle_dbapi_exception(error, statement, None, None, None)  # raises
    connection._cursor_execute(context.cursor, statement, parameters, context)
    try:
        context.post_exec()
        changed: int = context.cursor.rowcount
        connection._safe_close_cursor(context.cursor)  # and so is its end
    except BaseException as error:
        changed = connection._handle_dbapi_exception(error, statement, parameters, context.cursor, context)
    return changed


run: Callable[[Connection, str, Any], int] = in_turn(_run, has_result=False)


def _set_dispatch(connection: Any, dispatch: Any) -> None:
    connection.dispatch = dispatch


def use_unit_connections(engine: Any) -> None:
    """Make the engine hand out this class."""
    engine._connection_cls = UnitConnection
