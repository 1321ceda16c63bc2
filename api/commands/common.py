"""What several commands share: their options, their exit codes, and how they read the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from api.app import create_app
from api.logging import configure_logging
from api.migrations import MigrationFailed
from api.routes import wrong_required, wrong_rules
from api.settings import DEFAULT_FILE, ConfigurationError, Origin, Settings, Values, load_with_origin

# Documented in docs/configuration.md: 0 is "as asked". From 64 on they mean what they mean in sysexits.h,
# so that systemd, and whoever else starts the service, can tell what there is a use in trying again.
FAILED: Final = 1
MISUSED: Final = 2
SCHEMA: Final = 65
UNAVAILABLE: Final = 69
NO_ADDRESS: Final = 71
INTERRUPTED: Final = 130  # as a shell says it of a process that SIGINT has ended

Config = Annotated[
    Path | None,
    typer.Option(help=f"The settings, in TOML. Without it: {DEFAULT_FILE}, if there is one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs, not text for people.")]


def examples(*lines: str) -> str:
    """The end of a help text. Each example is a paragraph, because others are run together."""
    return "\n\n".join(["Examples:", *lines])


def read_settings(config: Path | None, options: Values | None = None) -> tuple[Settings, Origin]:
    """The settings, with the log set up by them; what is wrong with them ends the command."""
    try:
        settings, origin = load_with_origin(config, options)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(MISUSED) from None
    configure_logging(settings.logging)
    return settings, origin


def fail(message: str, code: int = FAILED) -> typer.Exit:
    """Say on standard error why it cannot be; raise what this answers."""
    typer.echo(message, err=True)
    return typer.Exit(code)


def refuse_wrong_rules(settings: Settings, origin: Origin) -> None:
    """End the command if something is for no route: which routes there are is known to the app alone."""
    if settings.unit_of_work.rules:
        for number, reason in wrong_rules(create_app(settings)):
            location = ("unit_of_work", "rules", number - 1, "match")
            raise fail(origin.wrong(location, reason), MISUSED)
    if settings.idempotency.required:
        for number, reason in wrong_required(create_app(settings)):
            raise fail(origin.wrong(("idempotency", "required", number), reason), MISUSED)


def cannot_migrate(settings: Settings, origin: Origin, error: MigrationFailed) -> typer.Exit:
    """Say why a start, or `migrate`, has failed at the database; raise what this answers."""
    remedy = "run newer code" if error.of_schema else "`python -m api check` says more"
    reason = f"{settings.database.shown}: cannot migrate: {error}: {remedy}"
    return fail(origin.wrong(("database", "url"), reason), SCHEMA if error.of_schema else UNAVAILABLE)


def echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def echo_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell, with nothing that a `grep` would stumble over."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
