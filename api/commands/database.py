"""`migrate`, `seed` and `backup`: what is done to a database from outside of the service."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from api import migrations
from api.commands.common import Config, examples, fail, read_settings
from api.database import run_with_database
from api.items.models import Item
from uow import Database

commands = typer.Typer()

_IN_ONE_UNIT = 500
_SECONDS_TO_WAIT = 30

Items = Annotated[int, typer.Option(min=1, max=10_000_000, help="How many items to add.")]
Target = Annotated[Path, typer.Argument(help="The file to make. One that is there is not overwritten.")]


@commands.command(epilog=examples("python -m api migrate", "python -m api migrate --config production.toml"))
def migrate(config: Config = None) -> None:
    """Bring the schema of the database up to date."""
    settings, _ = read_settings(config)
    try:
        revision = run_with_database(settings, migrations.migrate_with)
    except migrations.MigrationFailed as error:
        raise fail(f"{settings.database.shown}: cannot migrate: {error}") from None
    typer.echo(f"{settings.database.shown} is at revision {revision}.")


@commands.command(
    epilog=examples("python -m api seed --items 1000", "python -m api seed --items 5 --config demo.toml")
)
def seed(items: Items = 100, config: Config = None) -> None:
    """Add items with stock to try things out with; what is there stays.

    It adds in units of some hundreds, each whole or not at all, beside a service that runs.
    """
    settings, _ = read_settings(config)
    columns = TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("items", total=items)
            lack = run_with_database(
                settings,
                lambda database: _seed(database, items, lambda added: progress.advance(task, added)),
            )
    except migrations.FROM_OUTSIDE as error:
        raise fail(f"{settings.database.shown}: cannot seed: {migrations.reason_of(error)}") from None
    if lack:
        raise fail(f"{settings.database.shown}: cannot seed: {lack}")
    typer.echo(f"{settings.database.shown} has {items} more items.")


async def _seed(database: Database, items: int, advance: Callable[[int], object]) -> str | None:
    """Add them, or answer what the schema lacks."""
    async with database.new_unit(read_only=True, name="seed") as unit:
        revision = await unit.session.run_sync(lambda each: migrations.revision_of(each.connection()))
    if lack := migrations.lack_of(revision):
        return lack
    for first in range(0, items, _IN_ONE_UNIT):
        added = range(first, min(first + _IN_ONE_UNIT, items))
        async with database.new_unit(name="seed") as unit:
            unit.session.add_all([_demo(number) for number in added])
        advance(len(added))
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
        raise fail(
            f"{settings.database.shown} is PostgreSQL: use pg_dump --format=custom --file={target} ..."
        )
    if source is None:
        raise fail(f"{settings.database.shown} is in the memory of one process: there is nothing to copy")
    if not source.is_file():
        raise fail(f"{source}: there is no such file")
    if target.exists():
        raise fail(f"{target} is there already: name another file, or remove it")
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
    """In one step, so that no writer can make it begin again; then look whether it is whole."""
    uri = f"{source.absolute().as_uri()}?mode=ro"
    reading = sqlite3.connect(uri, uri=True, timeout=_SECONDS_TO_WAIT)
    with closing(reading) as live, closing(sqlite3.connect(part)) as copy:
        live.backup(copy)
        (found,) = copy.execute("PRAGMA quick_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"the copy is not whole: {found}")
