"""The tables of the fault tests' app, and a server that runs it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.app import schema
from tests.support.backends import Backend
from tests.support.server import Serve, UvicornServer

Start = Callable[..., UvicornServer]
APP = "tests.faults.app:create_app"


@pytest.fixture
def tables(backend: Backend) -> None:
    for statement in schema(backend.dialect):
        backend.execute(statement)


@pytest.fixture
def server(tables: None, backend: Backend, serve: Serve) -> UvicornServer:
    """The app on an empty database. With uvicorn's shutdown bounded to one second."""
    return serve(APP, backend=backend, graceful_shutdown=1)
