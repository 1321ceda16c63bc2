"""What the runner tells an app through its environment."""

import os
from typing import Any


def plain_url() -> str:
    """The URL as `uow` takes it, without a driver."""
    return os.environ["TESTS_PLAIN_URL"]


def async_url() -> str:
    return os.environ["TESTS_DATABASE_URL"]


def sync_url() -> str:
    return async_url().replace("+asyncpg", "+psycopg").replace("+aiosqlite", "+pysqlite")


def engine_options() -> dict[str, Any]:
    """Keywords of `create_engine`, the same for every peer: the defaults, unless a hazard needs others."""
    options: dict[str, Any] = {}
    if size := os.environ.get("HAZARDS_POOL_SIZE"):
        options |= {"pool_size": int(size), "max_overflow": 0}
    if timeout := os.environ.get("HAZARDS_POOL_TIMEOUT"):
        options["pool_timeout"] = int(timeout)
    if isolation := os.environ.get("HAZARDS_ISOLATION"):
        options["isolation_level"] = isolation
    return options


def handles_integrity_errors() -> bool:
    """The app has a handler of its own for IntegrityError."""
    return "HAZARDS_HANDLER" in os.environ
