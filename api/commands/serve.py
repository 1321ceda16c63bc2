"""`serve`: the server, and what it says when it is there."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvicorn

from api.app import create_app
from api.commands.common import FAILED, Config, examples, fail, read_settings
from api.migrations import MigrationFailed, prepare
from api.settings import DEFAULT_FILE, Settings
from uow import Database

log = structlog.stdlib.get_logger(__name__)
commands = typer.Typer()

Host = Annotated[str | None, typer.Option(help="The address to listen on.")]
Port = Annotated[int | None, typer.Option(help="The port to listen on; 0 takes any free one.")]


@commands.command(
    epilog=examples(
        "python -m api",
        "python -m api serve --config production.toml",
        "python -m api serve --host 0.0.0.0 --port 9000",
    )
)
def serve(config: Config = None, host: Host = None, port: Port = None) -> None:
    """Serve the inventory (what no command does, too)."""
    from api.commands import processes  # noqa: PLC0415 - it imports this module

    given = {"host": host, "port": port}
    settings, _ = read_settings(config, {"server": {k: v for k, v in given.items() if v is not None}})
    source = config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    clear_socket(settings)
    started = False
    # Ctrl-C is how it is meant to end: the server has shut down before the interrupt comes here.
    # SystemExit is how it says that it has no address to listen on; the log has the reason.
    with suppress(KeyboardInterrupt, SystemExit):
        if settings.server.workers > 1 or settings.server.reload:
            started = processes.run(settings, source)
        else:
            server = Server(settings, source)
            try:
                server.run()
            finally:
                started = server.started
    if started and settings.server.unix_socket:
        Path(settings.server.unix_socket).unlink(missing_ok=True)
    if not started:
        raise typer.Exit(FAILED)


def clear_socket(settings: Settings) -> None:
    """Remove the Unix socket of a server that was killed; that of one that listens ends the start."""
    path = Path(settings.server.unix_socket)
    if settings.server.unix_socket and path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            try:
                caller.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
        raise fail(f"[server] unix_socket: another server listens on {path}")


def uvicorn_config(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    """What uvicorn is told. Nothing is left to its own environment variables."""
    server = settings.server
    return uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        uds=server.unix_socket or None,
        workers=server.workers,
        proxy_headers=bool(server.trusted_proxies),
        forwarded_allow_ips=server.trusted_proxies,
        ssl_certfile=server.tls_certificate or None,
        ssl_keyfile=server.tls_key or None,
        timeout_keep_alive=server.keep_alive_timeout,
        timeout_graceful_shutdown=server.graceful_shutdown_timeout,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        **more,
    )


class Server(uvicorn.Server):
    """uvicorn, which prepares the schema first, and says where to look as soon as it listens."""

    def __init__(self, settings: Settings, source: Path | None) -> None:
        app = create_app(settings)
        self.settings = settings
        self.database: Database = app.state.database
        self.not_ready: str | None = None
        self.source = source
        super().__init__(uvicorn_config(app, settings))

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
                say_where(self.settings, self.source, listener, self.not_ready)


def say_where(
    settings: Settings, source: Path | None, listener: socket.socket, not_ready: str | None
) -> None:
    """Tell the people at the terminal where to go on."""
    address = _address(listener, "https" if settings.server.tls_certificate else "http")
    lines = [
        f"{settings.service.title} is at {address}",
        f"  documentation  {address}/docs",
        f"  health         {address}/readyz",
        f"  database       {settings.database.shown}",
        f"  settings       {source or f'defaults (there is no {DEFAULT_FILE} here)'}",
        *([f"  not ready      {not_ready}"] if not_ready else []),
    ]
    typer.echo("\n".join(lines))
    sys.stdout.flush()


def _address(listener: socket.socket, scheme: str) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
