"""The database of the service, as its settings describe it."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
from sqlalchemy import URL, make_url

from api.settings import DatabaseSettings, Settings
from uow import Database
from uow.observe import UnitObserver
from uow.outcome import TrueOutcome

_SECONDS_TO_ASK = 10
_SECONDS_TO_END = 5

T = TypeVar("T")


class PasswordUnavailable(OSError):
    """A connection cannot be made, because its password cannot be had."""


def open_database(settings: Settings, observer: UnitObserver | None = None) -> Database:
    """Nothing is connected yet; every process of the service needs one of its own."""
    return Database(
        url_of(settings.database),
        **settings.database.pool(),
        **_driver_options(settings.database),
        settle_timeout=settings.unit_of_work.settle_timeout,
        observer=observer,
        outcome=_outcome(settings.database),
        max_waiting=settings.database.max_waiting,
    )


def run_with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """What `work` answers, in an event loop of its own, for a command."""

    async def run() -> T:
        try:
            async with open_database(settings) as database:
                return await work(database)
        finally:
            await end_of_threads()

    return asyncio.run(run())


async def end_of_threads() -> None:
    """To be awaited at the end of an event loop in which a connection could not be made."""
    # The thread of an aiosqlite connection that could not be made tells the loop of its end a moment
    # later; if the loop is closed by then, that is a traceback below the message.
    threads = [each for each in threading.enumerate() if "_connection_worker_thread" in each.name]
    for thread in threads:
        await asyncio.to_thread(thread.join, _SECONDS_TO_END)


def url_of(settings: DatabaseSettings) -> URL:
    """The URL with the application's name, which one in the URL goes before."""
    url = make_url(settings.url)
    if settings.is_sqlite or not settings.application_name or "application_name" in url.query:
        return url
    return url.update_query_dict({"application_name": settings.application_name})


def _outcome(settings: DatabaseSettings) -> TrueOutcome | None:
    return TrueOutcome() if settings.ask_outcome and not settings.is_sqlite else None


def _driver_options(settings: DatabaseSettings) -> dict[str, Any]:
    if settings.is_sqlite:
        return {}
    psycopg = make_url(settings.url).drivername.endswith("+psycopg")
    arguments: dict[str, Any] = {}
    if settings.pooler and psycopg:
        arguments["prepare_threshold"] = None
    elif settings.pooler:
        # Behind a pooler the next statement may come to another server connection, where a name that
        # was prepared on this one is unknown, or is somebody else's.
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
        }
    if settings.password_file or settings.password_command:
        arguments["async_creator_fn"] = _connecting(settings, _connect_of(psycopg=psycopg))
    return {"connect_args": arguments}


Connect = Callable[..., Awaitable[Any]]


def _connect_of(*, psycopg: bool) -> Connect:
    if psycopg:
        from psycopg import AsyncConnection  # noqa: PLC0415 - a driver is loaded when it is used

        return AsyncConnection.connect
    import asyncpg  # noqa: PLC0415 - a driver is loaded when it is used

    connect: Connect = asyncpg.connect
    return connect


def _connecting(settings: DatabaseSettings, connect: Connect) -> Connect:
    async def with_password(*args: Any, **options: Any) -> Any:
        # Asked anew for each connection, so that a password can change while the service runs.
        password = await anyio.to_thread.run_sync(password_of, settings)
        return await connect(*args, **options | {"password": password})

    return with_password


def password_of(settings: DatabaseSettings) -> str:
    """What the file or the command says now, without the end of its line."""
    if settings.password_file:
        try:
            return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise PasswordUnavailable(f"{settings.password_file} cannot be read: {reason}") from None
    try:
        ended = subprocess.run(
            shlex.split(settings.password_command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_TO_ASK,
            check=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        raise PasswordUnavailable(f"[database] password_command took more than {_SECONDS_TO_ASK} s") from None
    except subprocess.CalledProcessError as error:
        # Without its output, which may hold what it is to keep.
        raise PasswordUnavailable(
            f"[database] password_command ended with status {error.returncode}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PasswordUnavailable(f"[database] password_command failed: {type(error).__name__}") from None
    return ended.stdout.rstrip("\r\n")
