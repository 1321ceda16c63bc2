"""The command line: `python -m api`, `python -m api migrate`."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from typer.core import TyperGroup

from api.app import create_app
from api.logging import configure_logging
from api.migrations import MigrationFailed, prepare
from api.migrations import migrate as migrate_schema
from api.settings import DEFAULT_FILE, ConfigurationError, Settings, Values, load_settings
from uow import Database

FAILED, MISUSED = 1, 2

log = structlog.stdlib.get_logger(__name__)


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
    help="An inventory: items with stock, and orders that reserve it.",
)

Config = Annotated[
    Path | None,
    typer.Option(help=f"The settings, in TOML. Without it: {DEFAULT_FILE}, if there is one."),
]
Host = Annotated[str | None, typer.Option(help="The address to listen on.")]
Port = Annotated[int | None, typer.Option(help="The port to listen on; 0 takes any free one.")]


@app.command()
def serve(config: Config = None, host: Host = None, port: Port = None) -> None:
    """Serve the inventory (what no command does, too)."""
    given = {"host": host, "port": port}
    settings = _load(config, {"server": {k: v for k, v in given.items() if v is not None}})
    server = Server(settings, config)
    # Ctrl-C is how it is meant to end: the server has shut down before the interrupt comes here.
    # SystemExit is how it says that it has no address to listen on; the log has the reason.
    with suppress(KeyboardInterrupt, SystemExit):
        server.run()
    if not server.started:
        raise typer.Exit(FAILED)


@app.command()
def migrate(config: Config = None) -> None:
    """Bring the schema of the database up to date."""
    settings = _load(config, {})
    try:
        revision = migrate_schema(settings.database.url)
    except MigrationFailed as error:
        typer.echo(f"{settings.database.shown}: cannot migrate: {error}", err=True)
        raise typer.Exit(FAILED) from None
    typer.echo(f"{settings.database.shown} is at revision {revision}.")


def _load(config: Path | None, options: Values) -> Settings:
    try:
        settings = load_settings(config, options)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(MISUSED) from None
    configure_logging(settings.logging)
    return settings


class Server(uvicorn.Server):
    """uvicorn, which prepares the schema first, and says where to look as soon as it listens."""

    def __init__(self, settings: Settings, config: Path | None) -> None:
        app = create_app(settings)
        self.settings = settings
        self.database: Database = app.state.database
        self.not_ready: str | None = None
        self.source = config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.server.host,
                port=settings.server.port,
                timeout_keep_alive=settings.server.keep_alive_timeout,
                timeout_graceful_shutdown=settings.server.graceful_shutdown_timeout,
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            self.not_ready = await prepare(self.database, self.settings.database.migrate_on_start)
        except MigrationFailed as error:
            log.error("cannot migrate", database=self.settings.database.shown, reason=str(error))
            await self.database.dispose()
            self.should_exit = True
            return
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                self._say_where(listener)

    def _say_where(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        source = str(self.source) if self.source else f"defaults (there is no {DEFAULT_FILE} here)"
        lines = [
            f"{self.settings.service.title} is at {address}",
            f"  documentation  {address}/docs",
            f"  health         {address}/readyz",
            f"  database       {self.settings.database.shown}",
            f"  settings       {source}",
            *([f"  not ready      {self.not_ready}"] if self.not_ready else []),
        ]
        print("\n".join(lines), flush=True)
