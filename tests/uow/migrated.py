"""The tables that an optional module brings along, made by a migration."""

from __future__ import annotations

from types import ModuleType

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import MetaData, create_engine, inspect

from tests.support.backends import Backend


def assert_table_is_that_of_the_metadata(backend: Backend, module: ModuleType) -> None:
    """The same by a migration's upgrade as by `create_all()`, and gone with its downgrade."""
    module.table(metadata := MetaData())
    engine = create_engine(backend.url("sync"))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        module.create_table(Operations(context))
        assert compare_metadata(context, metadata) == []
        module.drop_table(Operations(context))
        assert inspect(connection).get_table_names() == []
    engine.dispose()
