"""`serve`: the server, and what it says when it is there."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from api.app import create_app
from api.commands.common import (
    FAILED,
    NO_ADDRESS,
    Config,
    cannot_migrate,
    examples,
    fail,
    read_settings,
    refuse_wrong_rules,
)
from api.commands.listening import CannotListen, bound
from api.database import end_of_threads
from api.migrations import MigrationFailed, prepare
from api.protocol import StrictProtocol
from api.settings import DEFAULT_FILE, Settings
from uow import Database

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
    """Serve the inventory. This is what `python -m api` does without a command.

    After SIGTERM or Ctrl-C the requests under way are answered, and nobody else is.
    """
    from api.commands import processes  # noqa: PLC0415 - it imports this module

    given = {"host": host, "port": port}
    settings, origin = read_settings(config, {"server": {k: v for k, v in given.items() if v is not None}})
    refuse_wrong_rules(settings, origin)
    try:
        sockets = bound(settings.server)
    except CannotListen as error:
        raise fail(origin.wrong(("server", error.key), str(error)), NO_ADDRESS) from None
    started = False
    # A signal is how it is meant to end: the server has shut down before the interrupt comes here.
    # SystemExit is how uvicorn says that it cannot serve; the log has the reason.
    try:
        with suppress(KeyboardInterrupt, SystemExit), _terminated_as_interrupted():
            if settings.server.workers > 1 or settings.server.reload:
                started = processes.run(settings, origin.path, sockets)
            else:
                server = Server(settings, origin.path)
                try:
                    server.run(sockets)
                finally:
                    started = server.started
    except MigrationFailed as error:
        raise cannot_migrate(settings, origin, error) from None
    finally:
        for each in sockets:
            each.close()
        if settings.server.unix_socket:
            Path(settings.server.unix_socket).unlink(missing_ok=True)
    if not started:
        raise typer.Exit(FAILED)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Make SIGTERM the same as Ctrl-C: uvicorn sends itself again what it has shut down for.

    That would kill the process: its Unix socket would stay, and its end would look like a failure.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# On asyncio's own loop, the slower one, who waits to be accepted is read after four turns.
_TURNS_TO_READ = 10

Handler = Callable[[int, FrameType | None], object]


def read_before_stopping() -> None:
    """Let the event loop, which runs, read what has arrived before it stops for a signal.

    uvicorn closes its listeners and its idle connections at once, and with them the requests that nobody
    has read: on a machine that was stalled for a moment, all of that moment.
    """
    loop = asyncio.get_running_loop()

    def after(turns: int, stop: Handler, number: int) -> None:
        if turns:
            loop.call_soon(after, turns - 1, stop, number)
        else:
            stop(number, None)

    def delayed(stop: Handler) -> Handler:
        return lambda number, _: loop.call_soon_threadsafe(after, _TURNS_TO_READ, stop, number)

    for number in HANDLED_SIGNALS:
        stop = signal.getsignal(number)
        if callable(stop):
            signal.signal(number, delayed(stop))


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
        http=StrictProtocol,
        h11_max_incomplete_event_size=server.max_header_size,
        limit_concurrency=server.max_connections,
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
        self.source = source
        super().__init__(uvicorn_config(app, settings))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        read_before_stopping()
        try:
            not_ready = await prepare(self.database, self.settings.database.migrate_on_start)
        except MigrationFailed:
            await self.database.dispose()
            await end_of_threads()
            raise
        await super().startup(sockets)
        if self.started and sockets:
            say_where(self.settings, self.source, sockets, not_ready)


def say_where(
    settings: Settings, source: Path | None, sockets: list[socket.socket], not_ready: str | None
) -> None:
    """Tell the people at the terminal where to go on."""
    scheme = "https" if settings.server.tls_certificate else "http"
    address, *others = [_address(each, scheme) for each in sockets]
    lines = [
        f"{settings.service.title} is at {address}",
        *[f"  and at         {other}" for other in others],
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
