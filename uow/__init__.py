"""A unit of work for every HTTP request: a 2xx is a promise that the database has kept.

`UnitOfWorkMiddleware` gives each request of a Starlette or FastAPI app one session, on first use, and
commits it before the first byte of a 2xx or 3xx answer leaves; any other answer rolls it back. Code reads
the session with `current_session()`.
"""

from . import errors
from ._context import current_session, current_sync_session, current_unit, on_commit
from ._new_unit import new_unit
from ._options import unit_options
from ._sessions import UnitSession
from ._unit import UnitOfWork
from .database import Database
from .middleware import UnitOfWorkMiddleware

__all__ = [
    "Database",
    "UnitOfWork",
    "UnitOfWorkMiddleware",
    "UnitSession",
    "current_session",
    "current_sync_session",
    "current_unit",
    "errors",
    "new_unit",
    "on_commit",
    "unit_options",
]
