"""A server of several processes, and one that starts anew when the source changes."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import ChangeReload, Multiprocess

import api
import uow
from api.app import create_app
from api.commands.serve import say_where, uvicorn_config
from api.database import run_with_database
from api.logging import configure_logging
from api.migrations import MigrationFailed, prepare
from api.settings import Settings

log = structlog.stdlib.get_logger(__name__)

# A worker on a busy machine imports for seconds; one that is silent for longer is replaced.
_SECONDS_TO_ANSWER = 60


def make_app(settings: Settings) -> FastAPI:
    """The app of one worker, which is a new process: nothing is set up in it yet."""
    configure_logging(settings.logging)
    return create_app(settings)


def run(settings: Settings, source: Path | None) -> bool:
    """Serve until a signal; answer whether it came to that."""
    try:
        # Once, before there are workers, which would all try.
        not_ready = run_with_database(
            settings, lambda database: prepare(database, settings.database.migrate_on_start)
        )
    except MigrationFailed as error:
        log.error("cannot migrate", database=settings.database.shown, reason=str(error))
        return False
    config = uvicorn_config(
        partial(make_app, settings),
        settings,
        factory=True,
        timeout_worker_healthcheck=_SECONDS_TO_ANSWER,
    )
    with config.bind_socket() as listener:
        say = partial(say_where, settings, source, listener, not_ready)
        if settings.server.reload:
            config.reload_dirs = [Path(folder) for package in (api, uow) for folder in package.__path__]
            say()
            ChangeReload(config, target=uvicorn.Server(config).run, sockets=[listener]).run()
            return True
        workers = Workers(config, listener, say)
        workers.run()
        return workers.started


class Workers(Multiprocess):
    """uvicorn's processes, with a word as soon as all of them serve."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, say: partial[None]) -> None:
        super().__init__(config, [listener])
        self.started = False
        self._say = say

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if not self.started and not self.should_exit.is_set():
            self.started = all(process.is_ready(timeout=1) for process in self.processes)
            if self.started:
                self._say()
