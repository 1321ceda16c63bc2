"""What several commands share: their options, their exit codes, and how they read the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from api.logging import configure_logging
from api.settings import DEFAULT_FILE, ConfigurationError, Origin, Settings, Values, load_with_origin

# Documented in docs/configuration.md: 0 is "as asked".
FAILED: Final = 1
MISUSED: Final = 2

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


def fail(message: str) -> typer.Exit:
    """Say on standard error why it cannot be; raise what this answers."""
    typer.echo(message, err=True)
    return typer.Exit(FAILED)


def echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def echo_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell, with nothing that a `grep` would stumble over."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
