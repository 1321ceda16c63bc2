"""A configuration that is in order, and a start that cannot be: the address, the database, its schema.

Each has an exit code of its own, and one message with the place, the key and what to do.
"""

from __future__ import annotations

import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

import api.database
from api.cli import app
from api.migrations import migrate
from tests.api.service import run_api, write_config
from tests.support.backends import PostgresBackend
from tests.support.wait import LIMIT

WRONG, SCHEMA, NO_DATABASE, NO_ADDRESS = 2, 65, 69, 71


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def served(code: int, *arguments: str, **sections: dict[str, object]) -> str:
    """What a process says that is to serve, and cannot: one line, beside the log of what it did before."""
    write_config(Path("a.toml"), sections)
    ended = run_api("serve", "--config", "a.toml", *arguments, cwd=Path.cwd())
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"\S+Z \[info ", line)]
    assert len(lines) == 1, ended.stderr
    assert "hunter2" not in ended.stderr
    return lines[0]


def checked(code: int, **sections: dict[str, object]) -> str:
    """The one finding of `check` that stops a start."""
    write_config(Path("a.toml"), sections)
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert (ended.exit_code, ended.stderr) == (code, ""), ended.output
    (finding,) = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    assert "hunter2" not in ended.stdout
    return " ".join(finding.split()[1:])


@contextmanager
def listening() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


# -- the address


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken(workers: int) -> None:
    with listening() as port:
        said = served(NO_ADDRESS, server={"port": port, "workers": workers})
    assert said == (
        f"a.toml, line 2: [server] port: {port} on 127.0.0.1: address already in use: "
        "choose another, or stop who has it"
    )
    assert not Path("inventory.db").exists()


def test_a_port_of_the_command_line_that_is_taken() -> None:
    with listening() as port:
        assert served(NO_ADDRESS, "--port", str(port)).startswith(f"option --port: [server] port: {port} on ")


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "192.0.2.1 is no address of this machine"), ("two words", "two words is not known")],
)
def test_a_host_that_is_none_of_this_machine(host: str, reason: str) -> None:
    said = served(NO_ADDRESS, server={"host": host, "port": 0})
    assert said.startswith(f"a.toml, line 2: [server] host: {reason}: ")
    assert "name " in said


def test_a_unix_socket_where_something_else_is() -> None:
    Path("x.sock").write_text("mine", encoding="utf-8")
    said = served(NO_ADDRESS, server={"unix_socket": "x.sock"})
    assert said == (
        "a.toml, line 2: [server] unix_socket: x.sock cannot be made: "
        "something else is there: remove it, or name another path"
    )
    assert Path("x.sock").read_text(encoding="utf-8") == "mine"


# -- the database


def test_a_folder_that_is_not_there() -> None:
    url = "sqlite:///no/x.db"
    said = served(NO_DATABASE, server={"port": 0}, database={"url": url})
    assert said.startswith(
        f"a.toml, line 4: [database] url: {url}: cannot migrate: unable to open database file: "
    )
    said = checked(NO_DATABASE, database={"url": url})
    assert said.startswith("database a.toml, line 2: [database] url: no/x.db: there is no folder ")
    assert said.endswith("make it, or name another file")


def test_a_folder_for_a_file() -> None:
    Path("x.db").mkdir()
    said = checked(NO_DATABASE, database={"url": "sqlite:///x.db"})
    assert said == "database a.toml, line 2: [database] url: x.db is a folder: name a file in it"


def test_a_file_that_is_no_database() -> None:
    Path("x.db").write_text("something else " * 100, encoding="utf-8")
    said = served(NO_DATABASE, server={"port": 0}, database={"url": "sqlite:///x.db"})
    assert "[database] url: sqlite:///x.db: cannot migrate: file is not a database: " in said
    assert said.endswith("`python -m api check` says more")
    assert "file is not a database" in checked(NO_DATABASE, database={"url": "sqlite:///x.db"})


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_server_that_is_away(driver: str) -> None:
    url = f"postgresql+{driver}://u:hunter2@127.0.0.1:1/x"
    said = checked(NO_DATABASE, database={"url": url})
    shown = url.replace("hunter2", "***")
    assert said.startswith(f"database a.toml, line 2: [database] url: {shown} cannot be reached: ")
    assert "is it running" in said
    always: dict[str, object] = {"url": url, "migrate_on_start": "always"}
    assert f"[database] url: {shown}: cannot migrate: " in served(NO_DATABASE, database=always)


@contextmanager
def refusing(code: str, message: str) -> Iterator[int]:
    """A PostgreSQL that lets nobody in, and says why; the servers of the tests trust everybody."""
    fields = f"SFATAL\0VFATAL\0C{code}\0M{message}\0\0".encode()
    answer = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def refuse() -> None:
            while not over.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client:
                    client.settimeout(LIMIT)
                    if b"\x04\xd2\x16\x2f" in client.recv(8):  # it asks whether there is TLS
                        client.sendall(b"N")
                        client.recv(1000)
                    client.sendall(answer)

        thread = threading.Thread(target=refuse)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_wrong_password(driver: str) -> None:
    reason = 'password authentication failed for user "u"'
    with refusing("28P01", reason) as port:
        url = f"postgresql+{driver}://u:hunter2@127.0.0.1:{port}/x"
        said = checked(NO_DATABASE, database={"url": url})
        assert "a.toml, line 2: [database] url: " in said
        assert reason in said
        said = served(NO_DATABASE, database={"url": url, "migrate_on_start": "always"})
        assert reason in said


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("password_command", "false", "[database] password_command ended with status 1"),
        ("password_command", "sleep 60", "[database] password_command took more than 0.1 s"),
        ("password_file", "missing", "missing cannot be read: No such file"),
    ],
)
def test_a_password_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, reason: str
) -> None:
    monkeypatch.setattr(api.database, "_SECONDS_TO_ASK", 0.1 if "sleep" in value else LIMIT)
    said = checked(NO_DATABASE, database={"url": "postgresql://u@127.0.0.1:1/x", key: value})
    assert said.startswith(f"database a.toml, line 3: [database] {key}: there is no password: {reason}")


# -- its schema, its pools


def test_a_schema_that_nobody_may_migrate() -> None:
    sqlite3.connect("x.db").close()
    said = checked(SCHEMA, database={"url": "sqlite:///x.db", "migrate_on_start": "never"})
    assert said.startswith(
        "migrations a.toml, line 3: [database] migrate_on_start: The schema is at revision none"
    )
    assert "run `python -m api migrate`" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_schema_of_newer_code(workers: int) -> None:
    migrate("sqlite:///x.db")
    with closing(sqlite3.connect("x.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    database: dict[str, object] = {"url": "sqlite:///x.db"}
    said = served(SCHEMA, server={"port": 0, "workers": workers}, database=database)
    assert "[database] url: sqlite:///x.db: cannot migrate: " in said
    assert "'9999': run newer code" in said
    assert "newer code" in checked(SCHEMA, database=database)


def test_a_pool_that_is_too_small() -> None:
    said = checked(WRONG, database={"pool_size": 1})
    assert said.startswith("wiring a.toml, line 2: [database] pool_size: ")


@pytest.mark.backends("pg18")
def test_pools_that_are_too_large(postgres: PostgresBackend) -> None:
    said = checked(WRONG, database={"url": postgres.database_url, "pool_size": 400})
    assert said.startswith(
        "connections a.toml, line 3: [database] pool_size: 2 engines x 400 connections x 1 worker ="
    )
    assert "raise max_connections to 800" in said
