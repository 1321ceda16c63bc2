"""The command line: `python -m api`, `python -m api migrate`. The commands are in `api.commands`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from api.commands import check, database, key, outbox, serve, show


class ServeByDefault(TyperGroup):
    """`python -m api --port 9000` is `python -m api serve --port 9000`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ServeByDefault,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An inventory: items with stock, and orders that reserve it.",
    epilog="Exit codes: 0 as asked; 1 it could not be done, and why is on standard error; "
    "2 the configuration or the command line is wrong; 65 the schema is not what the code needs; "
    "69 the database cannot be used; 71 the address cannot be listened on; 130 it was interrupted.",
)
for group in (serve, check, database, show, key, outbox):
    app.add_typer(group.commands)
