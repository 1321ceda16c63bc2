"""The migrations make the schema that the models describe, on every engine, whoever else starts too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect

from api import idempotency as _idempotency  # noqa: F401 - fills the metadata
from api import migrations
from api import outbox as _outbox  # noqa: F401 - fills the metadata
from api.items import models as _items  # noqa: F401 - fills the metadata
from api.migrations import MigrationFailed, head, lack_of, migrate, prepare
from api.models import Base
from api.orders import models as _orders  # noqa: F401 - fills the metadata
from tests.api.service import write_config
from tests.support.backends import Backend
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until
from uow import Database


@pytest.fixture
def connection(backend: Backend) -> Iterator[Connection]:
    engine = create_engine(backend.url("sync"))
    with engine.connect() as made:
        yield made
    engine.dispose()


def shape(connection: Connection) -> dict[str, dict[str, Any]]:
    """What the models and the database must have in common, as SQLAlchemy reads it from the database."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": sorted((each["name"], each["nullable"]) for each in inspector.get_columns(table)),
            "key": inspector.get_pk_constraint(table),
            "unique": sorted(str(each["name"]) for each in inspector.get_unique_constraints(table)),
            "checks": sorted(
                (each["name"], each["sqltext"]) for each in inspector.get_check_constraints(table)
            ),
            "foreign": sorted(
                (each["name"], each["referred_table"], str(each.get("options")))
                for each in inspector.get_foreign_keys(table)
            ),
            "indexes": sorted(str(each["name"]) for each in inspector.get_indexes(table)),
        }
        for table in sorted(inspector.get_table_names())
        if table != "alembic_version"
    }


def test_the_migrations_make_what_the_models_describe(backend: Backend, connection: Connection) -> None:
    assert migrate(backend.database_url) == head() == "0003"
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    assert compare_metadata(context, Base.metadata) == []
    connection.rollback()
    # Alembic does not compare constraints such as CHECK: the tables that the models make do.
    migrated = shape(connection)
    connection.rollback()
    for table in (*migrated, "alembic_version"):
        backend.execute(f"DROP TABLE {table}{' CASCADE' if backend.dialect == 'postgresql' else ''}")
    Base.metadata.create_all(connection)
    assert shape(connection) == migrated
    assert sorted(migrated) == [
        "idempotency_keys",
        "items",
        "order_lines",
        "orders",
        "outbox_events",
        "receipts",
    ]
    connection.commit()


def test_a_second_migration_changes_nothing(backend: Backend) -> None:
    migrate(backend.database_url)
    backend.execute("INSERT INTO orders (status, created_at) VALUES ('open', '2026-01-01 00:00:00')")
    assert migrate(backend.database_url) == head()
    assert backend.count("orders") == 1


def test_the_way_back_leaves_nothing(backend: Backend, connection: Connection) -> None:
    migrate(backend.database_url)
    config = migrations._config()
    config.attributes["connection"] = connection
    command.downgrade(config, "base")
    connection.commit()
    assert shape(connection) == {}
    connection.rollback()
    assert migrate(backend.database_url) == head()


def test_a_migration_that_fails_leaves_the_schema_as_it_was(backend: Backend, connection: Connection) -> None:
    backend.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    with pytest.raises(MigrationFailed, match=r"orders.* already exists"):
        migrate(backend.database_url)
    assert sorted(shape(connection)) == ["orders"]
    connection.rollback()
    backend.wait_until_at_rest()


def test_a_schema_that_is_newer_than_the_code_is_left_alone(backend: Backend) -> None:
    migrate(backend.database_url)
    backend.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(MigrationFailed, match="9999"):
        migrate(backend.database_url)
    assert backend.query("SELECT version_num FROM alembic_version") == [("9999",)]
    assert lack_of("9999") == (
        "The schema is at revision 9999, the code needs 0003: run `python -m api migrate`, or newer code."
    )


async def test_auto_changes_only_what_is_empty_or_embedded(backend: Backend) -> None:
    async with Database(backend.database_url) as database:
        assert await prepare(database, "never") == lack_of(None)
        assert await prepare(database, "auto") is None
        assert await prepare(database, "never") is None
        backend.execute("UPDATE alembic_version SET version_num = '9999'")
        if backend.dialect == "sqlite":
            with pytest.raises(MigrationFailed):
                await prepare(database, "auto")
        else:
            assert await prepare(database, "auto") == lack_of("9999")
        with pytest.raises(MigrationFailed):
            await prepare(database, "always")


@pytest.mark.backends("sqlite", "pg18")
def test_starts_at_the_same_time_migrate_once(backend: Backend, tmp_path: Path) -> None:
    path = write_config(tmp_path / "a.toml", {"database": {"url": backend.database_url}})
    arguments = [sys.executable, "-m", "api", "migrate", "--config", str(path)]
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    children = [Child(arguments, log=log, env=python_environment(), cwd=ROOT) for log in logs]
    try:
        wait_until(lambda: not any(child.alive for child in children), "all have ended", limit=4 * LIMIT)
    finally:
        ended = [child.stop() for child in children]
    told = [log.read_text() for log in logs]
    assert ended == [0, 0, 0], told
    assert all(f"{backend.database_url} is at revision 0003." in each for each in told)
    assert sum("Running upgrade" in each for each in told) == 1
    assert backend.query("SELECT version_num FROM alembic_version") == [("0003",)]


async def test_an_in_memory_database_is_migrated_where_it_is() -> None:
    async with Database("sqlite://") as database:
        assert await prepare(database, "auto") is None
        assert await prepare(database, "never") is None
