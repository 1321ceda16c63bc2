"""`migrate`, `seed`, `sweep` and `backup`: what is done to a database from outside of the service."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import URL, make_url

from api import migrations
from api.commands.common import (
    INTERRUPTED,
    SCHEMA,
    UNAVAILABLE,
    Config,
    cannot_migrate,
    examples,
    fail,
    read_settings,
)
from api.database import run_with_database
from api.items.models import Item
from uow import Database
from uow.idempotency import sweep as sweep_keys

commands = typer.Typer()

_IN_ONE_UNIT = 500
_SECONDS_TO_WAIT = 30

Items = Annotated[int, typer.Option(min=1, max=10_000_000, help="How many items to add.")]
Target = Annotated[Path, typer.Argument(help="The file to make. One that is there is not overwritten.")]


@commands.command(epilog=examples("python -m api migrate", "python -m api migrate --config production.toml"))
def migrate(config: Config = None) -> None:
    """Bring the schema of the database up to date."""
    settings, origin = read_settings(config)
    try:
        revision = run_with_database(settings, migrations.migrate_with)
    except migrations.MigrationFailed as error:
        raise cannot_migrate(settings, origin, error) from None
    typer.echo(f"{settings.database.shown} is at revision {revision}.")


@commands.command(
    epilog=examples("python -m api seed --items 1000", "python -m api seed --items 5 --config demo.toml")
)
def seed(items: Items = 100, config: Config = None) -> None:
    """Add items with stock to try things out with; what is there stays.

    It adds in units of some hundreds, each whole or not at all, beside a service that runs.
    """
    settings, origin = read_settings(config)
    file, shown = settings.database.file, settings.database.shown
    with _bar() as bar:
        task = bar.add_task("items", total=items)

        def added() -> str:
            return f"{int(bar.tasks[task].completed)} of {items} items were added"

        try:
            if file is not None and not file.exists():  # to look inside would make it
                lack = migrations.lack_of(None)
            else:
                seeding = partial(_seed, items=items, advance=partial(bar.advance, task))
                lack = run_with_database(settings, seeding)
        except migrations.FROM_OUTSIDE as error:
            reason = f"{shown}: cannot seed: {migrations.reason_of(error)}: {added()}"
            raise fail(origin.wrong(("database", "url"), reason), UNAVAILABLE) from None
        except KeyboardInterrupt:
            raise fail(f"{shown}: interrupted: {added()}", INTERRUPTED) from None
    if lack:
        raise fail(f"{shown}: cannot seed: {lack}", SCHEMA)
    typer.echo(f"{shown} has {items} more items.")


@commands.command(epilog=examples("python -m api sweep", "python -m api sweep --config production.toml"))
def sweep(config: Config = None) -> None:
    """Remove the idempotency keys that have expired, a few hundred in each unit.

    A service does so itself, every [idempotency] sweep_every.
    """
    settings, origin = read_settings(config)
    file, shown = settings.database.file, settings.database.shown
    if file is not None and not file.exists():  # to look inside would make it
        raise fail(f"{shown}: cannot sweep: {migrations.lack_of(None)}", SCHEMA)
    try:
        removed = run_with_database(settings, _sweep)
    except migrations.FROM_OUTSIDE as error:
        reason = f"{shown}: cannot sweep: {migrations.reason_of(error)}"
        raise fail(origin.wrong(("database", "url"), reason), UNAVAILABLE) from None
    if isinstance(removed, str):
        raise fail(f"{shown}: cannot sweep: {removed}", SCHEMA)
    typer.echo(f"{shown}: {removed} idempotency keys have expired and are removed.")


async def _sweep(database: Database) -> int | str:
    """How many were removed, or what the schema lacks."""
    return await _lack_in(database, "sweep") or await sweep_keys(database)


async def _lack_in(database: Database, name: str) -> str | None:
    async with database.new_unit(read_only=True, name=name) as unit:
        revision = await unit.session.run_sync(lambda each: migrations.revision_of(each.connection()))
    return migrations.lack_of(revision)


def _bar() -> Progress:
    """How far it is, for people: what a file or a pipe gets is the message of the end alone."""
    console = Console(stderr=True)
    columns = TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


async def _seed(database: Database, items: int, advance: Callable[[int], object]) -> str | None:
    """Add them, or answer what the schema lacks."""
    if lack := await _lack_in(database, "seed"):
        return lack
    for first in range(0, items, _IN_ONE_UNIT):
        added = range(first, min(first + _IN_ONE_UNIT, items))
        async with database.new_unit(name="seed") as unit:
            unit.session.add_all([_demo(number) for number in added])
            # Not after the block: one that is interrupted while it commits is kept, and counts.
            unit.on_commit(partial(advance, len(added)))
    return None


_COLOURS = "Red", "Blue", "Green", "White", "Black", "Yellow", "Grey"
_THINGS = "mug", "plate", "bowl", "glass", "spoon", "fork", "knife", "jug", "pan", "pot", "tray"


def _demo(number: int) -> Item:
    """Prices and stocks that differ; a SKU that nobody else has."""
    name = f"{_COLOURS[number % len(_COLOURS)]} {_THINGS[number % len(_THINGS)]} {number + 1}"
    sku = f"DEMO-{uuid4().hex[:16].upper()}"
    return Item.of(name=name, sku=sku, price=100 + number * 37 % 9_900, stock=number * 13 % 200)


@commands.command(epilog=examples("python -m api backup monday.db", "python -m api backup /backups/now.db"))
def backup(target: Target, config: Config = None) -> None:
    """Copy a SQLite database to a file, as it is at one moment, also while the service runs.

    PostgreSQL has pg_dump for this.
    """
    settings, _ = read_settings(config)
    source = settings.database.file
    if not settings.database.is_sqlite:
        of = make_url(settings.database.url)
        url = URL.create("postgresql", of.username, None, of.host, of.port, of.database)
        raise fail(f"{url} is PostgreSQL: use pg_dump --format=custom --file={target} {url}")
    if source is None:
        raise fail(f"{settings.database.shown} is in the memory of one process: there is nothing to copy")
    if not source.is_file():
        raise fail(f"{source}: there is no such file")
    if target.exists():
        raise fail(f"{target} is there already: name another file, or remove it")
    if not target.absolute().parent.is_dir():
        raise fail(f"{target}: there is no folder {target.absolute().parent}: make it, or name another file")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        _copy(source, part)
        part.rename(target)
    except (sqlite3.Error, OSError) as error:
        raise fail(f"{source} cannot be copied to {target}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    typer.echo(f"{target} is a copy of {source}, {target.stat().st_size} bytes.")


def _copy(source: Path, part: Path) -> None:
    """In one step, so that no writer can make it begin again; then look whether it is whole.

    Whoever may not read the database may not read the copy.
    """
    with open(os.open(part, os.O_CREAT | os.O_EXCL, 0o600)) as made:
        os.fchmod(made.fileno(), stat.S_IMODE(source.stat().st_mode))
    uri = f"{source.absolute().as_uri()}?mode=ro"
    reading = sqlite3.connect(uri, uri=True, timeout=_SECONDS_TO_WAIT)
    with closing(reading) as live, closing(sqlite3.connect(part)) as copy:
        live.backup(copy)
        (found,) = copy.execute("PRAGMA quick_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"the copy is not whole: {found}")
