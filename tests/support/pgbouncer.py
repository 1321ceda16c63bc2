"""PgBouncer in transaction mode, in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from sqlalchemy import make_url

from tests.support.backends import Leg, Mode, PostgresBackend
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from tests.support.variant import runs_with

VARIABLE = "TESTS_PGBOUNCER"
"""Names the program, if it is not on the path."""

KEEPS_THE_READER: Mapping[str, str] = {"track_extra_parameters": "default_transaction_read_only"}
"""What docs/deployment.md says: each client keeps the setting that makes it a reader."""

OLDEST = (1, 21)
"""The first that keeps prepared statements, and a reader's setting: https://www.pgbouncer.org/changelog.html."""

NONE_FOUND = f"no PgBouncer found: neither does {VARIABLE} name one, nor is `pgbouncer` on the path"

_SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "any",
    "pool_mode": "transaction",
    # Few enough that clients share them, and find what another one left behind.
    "default_pool_size": "4",
    "max_client_conn": "500",
}


def pgbouncer_binary() -> Path | None:
    """The program that is to be tested, or None; Debian puts it where only root looks."""
    named = os.environ.get(VARIABLE)
    found = named or shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return Path(found) if found else None


@cache
def version_of(binary: Path) -> tuple[int, int]:
    """What it says of itself: (1, 24)."""
    told = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout
    number = re.match(r"PgBouncer (\d+)\.(\d+)", told)
    if number is None:
        raise ValueError(f"{binary} is no PgBouncer: {told!r}")
    return int(number[1]), int(number[2])


def why_there_is_none() -> str | None:
    """Why nothing can be tested with PgBouncer here, or None if it can."""
    binary = pgbouncer_binary()
    if binary is None:
        return NONE_FOUND
    major, minor = version_of(binary)
    if (major, minor) < OLDEST:
        return f"PgBouncer {major}.{minor} keeps no prepared statements; 1.21 and newer ones can"
    return None


class PgBouncer(ServerProcess):
    """One PgBouncer of its own on a free loopback port; every database of the server is behind it.

    `settings` are those of its file, besides pool mode and port; they may be changed between two starts.
    """

    def __init__(
        self,
        binary: Path,
        server: PostgresServer,
        *,
        folder: Path,
        settings: Mapping[str, str] = KEEPS_THE_READER,
    ) -> None:
        super().__init__(folder=folder)
        self.settings = {**_SETTINGS, **settings}
        self._binary = binary
        self._server = server
        self._file = folder / f"pgbouncer-{self.port}.ini"

    def _command(self) -> Sequence[str]:
        settings = {**self.settings, "listen_port": str(self.port)}
        if os.geteuid() == 0:
            settings["user"] = "nobody"  # it refuses to be root
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self._server.port} user=postgres",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        self._file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [str(self._binary), str(self._file)]

    def _is_up(self, news: str) -> bool:
        return "process up: PgBouncer" in news

    def url_of(self, url: str) -> str:
        """The same database, with PgBouncer in between."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)


class PgBouncerBackend(PostgresBackend):
    """A database as the code under test reaches it through PgBouncer; the tests' own eyes go past it."""

    def __init__(self, name: Leg, server: PostgresServer, folder: Path, pgbouncer: PgBouncer) -> None:
        super().__init__(name, server, folder)
        self.pgbouncer = pgbouncer

    @property
    def database_url(self) -> str:
        return self.pgbouncer.url_of(super().database_url)

    def url(self, mode: Mode) -> str:
        return self.pgbouncer.url_of(super().url(mode))

    def drop(self) -> None:
        self.pgbouncer.close()
        super().drop()


def postgres_backend(name: Leg, server: PostgresServer, folder: Path) -> PostgresBackend:
    """An empty database on this server; behind a PgBouncer of its own, if the run says so."""
    if not runs_with("pgbouncer"):
        return PostgresBackend(name, server, folder)
    binary = pgbouncer_binary()
    if binary is None:
        raise LookupError(NONE_FOUND)
    return PgBouncerBackend(name, server, folder, PgBouncer(binary, server, folder=folder).start())
