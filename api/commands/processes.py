"""A server of several processes, and one that starts anew when the source changes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import ChangeReload, Multiprocess

import api
import uow
from api.app import create_app
from api.commands.serve import read_before_stopping, say_where, uvicorn_config
from api.database import run_with_database
from api.logging import configure_logging
from api.migrations import prepare
from api.settings import Settings

log = structlog.stdlib.get_logger(__name__)

# A worker on a busy machine imports for seconds; one that is silent for longer is replaced.
_SECONDS_TO_ANSWER = 60


def make_app(settings: Settings) -> FastAPI:
    """The app of one worker, which is a new process: nothing is set up in it yet."""
    configure_logging(settings.logging, worker=os.getpid())
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    read_before_stopping()
    return create_app(settings)


def _end_with_parent() -> None:
    """Shut down when the parent is gone, however it went: nobody else would end this process.

    It would go on serving, and the port would be taken for the next start.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        log.warning("the parent process is gone: this worker ends as well", parent=parent.pid)
        os.kill(os.getpid(), signal.SIGTERM)


def run(settings: Settings, source: Path | None, sockets: list[socket.socket]) -> bool:
    """Serve until a signal; answer whether it came to that. Raises `MigrationFailed`."""
    # Once, before there are workers, which would all try.
    not_ready = run_with_database(
        settings, lambda database: prepare(database, settings.database.migrate_on_start)
    )
    config = uvicorn_config(
        partial(make_app, settings),
        settings,
        factory=True,
        timeout_worker_healthcheck=_SECONDS_TO_ANSWER,
    )
    for each in sockets:
        each.listen(config.backlog)  # before the workers do, so that nobody comes between
    say = partial(say_where, settings, source, sockets, not_ready)
    if settings.server.reload:
        config.reload_dirs = [Path(folder) for package in (api, uow) for folder in package.__path__]
        say()
        ChangeReload(config, target=uvicorn.Server(config).run, sockets=sockets).run()
        return True
    workers = Workers(config, sockets, say)
    workers.run()
    return workers.started or workers.was_asked_to_end


class Workers(Multiprocess):
    """uvicorn's processes, with a word as soon as all of them serve."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], say: partial[None]) -> None:
        super().__init__(config, sockets)
        self.started = False
        self.was_asked_to_end = False
        self._say = say

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            # The worker has its own. While this one is open, one that dies when it is asked is only silent.
            process.child_conn.close()
        super().keep_subprocess_alive()
        if not self.started and not self.should_exit.is_set():
            self.started = all(process.is_ready(timeout=1) for process in self.processes)
            if self.started:
                self._say()

    def handle_int(self) -> None:
        self.was_asked_to_end = True
        super().handle_int()

    def handle_term(self) -> None:
        self.was_asked_to_end = True
        super().handle_term()

    def terminate_all(self) -> None:
        super().terminate_all()
        # While one process has it open, clients are not refused: they wait for whoever does not serve.
        for each in self.sockets:
            each.close()
