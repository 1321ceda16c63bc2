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
from api.commands.common import (
    MISUSED,
    SCHEMA,
    UNAVAILABLE,
    AsJson,
    Config,
    echo_json,
    echo_table,
    examples,
    read_settings,
    refuse_wrong_rules,
)
from api.commands.exposure import exposures
from api.database import PasswordUnavailable, run_with_database
from api.settings import DEFAULT_FILE, Origin, Settings
from uow import Database
from uow.outbox import Which
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
    code: int = 0
    """The exit code if it is not there."""
    warning: bool = False
    """It is good enough for a start, and said all the same."""

    @property
    def word(self) -> str:
        return ("warning" if self.warning else "ok") if self.ok else "FAILED"


@commands.command(
    epilog=examples(
        "python -m api check",
        "python -m api check --config production.toml --json",
        "python -m api check && systemctl restart uow-inventory",
    )
)
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Try all that a start needs, and say what to do about what is missing. Nothing is changed.

    The exit code is that of the first thing that is missing:
    0: all is there, warnings or not; 2: the configuration is wrong;
    65: the schema is not what the code needs; 69: the database cannot be used.
    """
    settings, origin = read_settings(config)
    refuse_wrong_rules(settings, origin)
    source = config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else "defaults")
    open_to_others = exposures(settings, origin)
    found = [
        Finding("configuration", ok=True, said=str(source)),
        Finding("security", True, "; ".join(open_to_others) or "in order", warning=bool(open_to_others)),
        *_secrets(origin),
        *_look(settings, origin),
    ]
    if as_json:
        echo_json([{k: v for k, v in asdict(each).items() if k != "code"} for each in found])
    else:
        echo_table([(each.word, each.what, each.said) for each in found])
    if codes := [each.code for each in found if not each.ok]:
        raise typer.Exit(codes[0])


def _secrets(origin: Origin) -> list[Finding]:
    """Secret files that say nothing, because an environment variable has the last word."""
    unused = [
        f"{path} is not used: {place}, has its setting as well: remove one of them"
        for (section, key), path in origin.secrets.items()
        if not (place := origin.of_value(section, key)).startswith("secret file ")
    ]
    return [Finding("secret files", True, "; ".join(unused), warning=True)] if unused else []


def _look(settings: Settings, origin: Origin) -> list[Finding]:
    found = [_wiring(settings, origin)]
    file = settings.database.file
    if file is not None and (lack := _lack_of_file(file)):
        return [*found, _no_database(origin, lack)]
    if file is not None and not file.exists():
        said = f"{file} is not there yet: the first start makes it"
        return [*found, Finding("database", ok=True, said=said), _schema(settings, origin, None)]
    try:
        return found + run_with_database(settings, lambda database: _look_inside(settings, origin, database))
    except PasswordUnavailable as error:
        key = "password_file" if settings.database.password_file else "password_command"
        return [*found, _no_database(origin, f"there is no password: {error}", key)]
    except (*migrations.FROM_OUTSIDE, TimeoutError) as error:
        reason = migrations.reason_of(error)
        missing = reason.startswith("database ") and reason.endswith(" does not exist")
        remedy = "create it" if missing else "is it running, and are the address and the password right?"
        said = f"{settings.database.shown} cannot be reached: {reason}: {remedy}"
        return [*found, _no_database(origin, said)]


def _no_database(origin: Origin, said: str, key: str = "url") -> Finding:
    return Finding("database", ok=False, said=origin.wrong(("database", key), said), code=UNAVAILABLE)


def _wiring(settings: Settings, origin: Origin) -> Finding:
    wrong = check_wiring(create_app(settings))
    said = "; ".join(map(str, wrong))
    if any(each.code == "pool-too-small" for each in wrong):
        said = origin.wrong(("database", "pool_size"), said)
    return Finding("wiring", ok=not wrong, said=said or "in order", code=MISUSED)


def _lack_of_file(file: Path) -> str | None:
    """SQLite writes beside its file as well."""
    folder = file.absolute().parent
    if not folder.is_dir():
        return f"{file}: there is no folder {folder}: make it, or name another file"
    if file.is_dir():
        return f"{file} is a folder: name a file in it"
    for needed in (folder, file):
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            return f"{needed} cannot be written: give it to the user that serves"
    return None


async def _look_inside(settings: Settings, origin: Origin, database: Database) -> list[Finding]:
    async with asyncio.timeout(_SECONDS_TO_LOOK):
        async with database.new_unit(read_only=True) as unit:
            revision = await unit.session.run_sync(lambda each: migrations.revision_of(each.connection()))
        shown, schema = settings.database.shown, _schema(settings, origin, revision)
        events = [] if migrations.lack_of(revision) else await _events(settings, database)
        if settings.database.is_sqlite:
            return [Finding("database", ok=True, said=f"{shown} answers"), schema, *events]
        async with database.new_unit() as unit:
            replica, room = await unit.session.run_sync(lambda each: _limits(each.connection()))
    answers = Finding("database", ok=True, said=f"{shown} answers and may be written")
    if replica:
        answers = _no_database(origin, f"{shown} is a replica, which only reads: name the primary")
    return [answers, schema, _connections(settings, origin, room), *events]


async def _events(settings: Settings, database: Database) -> list[Finding]:
    """What nobody would send: its destination was renamed, or taken away."""
    async with database.new_unit(read_only=True) as unit:
        wait = await settings.outbox.not_for_us(unit.session, Which(state="pending"))
    return [Finding("events", True, "; ".join(wait), warning=True)] if wait else []


def _limits(connection: Connection) -> tuple[bool, int]:
    replica = connection.scalar(text("SHOW transaction_read_only")) == "on"
    return replica, connection.scalar(_ROOM) or 0


def _schema(settings: Settings, origin: Origin, revision: str | None) -> Finding:
    lack = migrations.lack_of(revision)
    when = settings.database.migrate_on_start
    ours = when == "always" or (when == "auto" and (settings.database.is_sqlite or revision is None))
    if lack and ours and migrations.is_known(revision):
        return Finding("migrations", ok=True, said=f"at {revision or 'none'}: the start migrates")
    if lack is None:
        return Finding("migrations", ok=True, said=f"at revision {revision}")
    said = origin.wrong(("database", "migrate_on_start"), lack)
    return Finding("migrations", ok=False, said=said, code=SCHEMA)


def _connections(settings: Settings, origin: Origin, room: int) -> Finding:
    of, workers = settings.database, settings.server.workers
    each = of.pool_size + of.pool_overflow
    total = _ENGINES * each * workers
    some_workers = "1 worker" if workers == 1 else f"{workers} workers"
    sum_of = f"{_ENGINES} engines x {each} connections x {some_workers} = {total}"
    if of.pooler:
        return Finding(
            "connections", ok=True, said=f"{sum_of}, which the pooler must accept from its clients"
        )
    if total <= room:
        return Finding("connections", ok=True, said=f"{sum_of} of {room}")
    reason = (
        f"{sum_of}, and PostgreSQL has {room}: lower it or [server] workers, "
        f"or raise max_connections to {total} and what is reserved"
    )
    said = origin.wrong(("database", "pool_size"), reason)
    return Finding("connections", ok=False, said=said, code=MISUSED)
