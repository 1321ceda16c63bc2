"""`check`: everything that a start needs, tried without a start."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from sqlalchemy import Connection, text

from api import migrations
from api.app import create_app
from api.commands.common import FAILED, AsJson, Config, echo_json, echo_table, examples, read_settings
from api.database import run_with_database
from api.settings import DEFAULT_FILE, Settings
from uow import Database
from uow.wiring import check_wiring

commands = typer.Typer()

_SECONDS_TO_LOOK = 15
_ENGINES = 2  # of each worker: one writes, one reads

# What other clients than superusers may open; the second setting is younger than the first.
_ROOM = text(
    "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    " - coalesce(current_setting('reserved_connections', true), '0')::int"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a start needs, whether it is there, and if not, what to do."""

    what: str
    ok: bool
    said: str


@commands.command(
    epilog=examples(
        "python -m api check",
        "python -m api check --config production.toml --json",
        "python -m api check && systemctl restart inventory",
    )
)
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Try all that a start needs, and say what to do about what is missing. Nothing is changed.

    Exit code 0: all is there; 1: something is missing; 2: the configuration is wrong.
    """
    settings, _ = read_settings(config)
    source = config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else "defaults")
    found = [Finding("configuration", ok=True, said=str(source)), *_look(settings)]
    if as_json:
        echo_json([asdict(each) for each in found])
    else:
        echo_table([("ok" if each.ok else "FAILED", each.what, each.said) for each in found])
    if not all(each.ok for each in found):
        raise typer.Exit(FAILED)


def _look(settings: Settings) -> list[Finding]:
    found = [_wiring(settings)]
    file = settings.database.file
    if file is not None and (lack := _lack_of_file(file)):
        return [*found, Finding("database", ok=False, said=lack)]
    if file is not None and not file.exists():
        said = f"{file} is not there yet: the first start makes it"
        return [*found, Finding("database", ok=True, said=said), _schema(settings, None)]
    try:
        return found + run_with_database(settings, lambda database: _look_inside(settings, database))
    except (*migrations.FROM_OUTSIDE, TimeoutError) as error:
        said = f"{settings.database.shown} cannot be reached: {migrations.reason_of(error)}: "
        advice = "is it running, and are [database] url and the password right?"
        return [*found, Finding("database", ok=False, said=said + advice)]


def _wiring(settings: Settings) -> Finding:
    wrong = check_wiring(create_app(settings))
    return Finding("wiring", ok=not wrong, said="; ".join(map(str, wrong)) or "in order")


def _lack_of_file(file: Path) -> str | None:
    """SQLite writes beside its file as well."""
    folder = file.absolute().parent
    if not folder.is_dir():
        return f"{file}: there is no folder {folder}: make it, or change [database] url"
    for needed in (folder, file):
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            return f"{needed} cannot be written: give it to the user that serves"
    return None


async def _look_inside(settings: Settings, database: Database) -> list[Finding]:
    async with asyncio.timeout(_SECONDS_TO_LOOK):
        async with database.new_unit(read_only=True) as unit:
            revision = await unit.session.run_sync(lambda each: migrations.revision_of(each.connection()))
        shown, schema = settings.database.shown, _schema(settings, revision)
        if settings.database.is_sqlite:
            return [Finding("database", ok=True, said=f"{shown} answers"), schema]
        async with database.new_unit() as unit:
            replica, room = await unit.session.run_sync(lambda each: _limits(each.connection()))
    said = f"{shown} answers and may be written"
    if replica:
        said = f"{shown} is a replica, which only reads: name the primary in [database] url"
    return [Finding("database", ok=not replica, said=said), schema, _connections(settings, room)]


def _limits(connection: Connection) -> tuple[bool, int]:
    replica = connection.scalar(text("SHOW transaction_read_only")) == "on"
    return replica, connection.scalar(_ROOM) or 0


def _schema(settings: Settings, revision: str | None) -> Finding:
    lack = migrations.lack_of(revision)
    when = settings.database.migrate_on_start
    ours = when == "always" or (when == "auto" and (settings.database.is_sqlite or revision is None))
    if lack and ours:
        return Finding("migrations", ok=True, said=f"at {revision or 'none'}: the start migrates")
    return Finding("migrations", ok=lack is None, said=lack or f"at revision {revision}")


def _connections(settings: Settings, room: int) -> Finding:
    of, workers = settings.database, settings.server.workers
    each = of.pool_size + of.pool_overflow
    total = _ENGINES * each * workers
    sum_of = f"{_ENGINES} engines x {each} connections x {workers} workers = {total}"
    if of.pooler:
        return Finding(
            "connections", ok=True, said=f"{sum_of}, which the pooler must accept from its clients"
        )
    if total <= room:
        return Finding("connections", ok=True, said=f"{sum_of} of {room}")
    return Finding(
        "connections",
        ok=False,
        said=f"{sum_of}, and PostgreSQL has {room}: lower [database] pool_size or [server] workers, "
        f"or raise max_connections to {total} and what is reserved",
    )
