"""`python -m api seed` and `backup`."""

from __future__ import annotations

import os
import pty
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.migrations import migrate
from api.settings import Settings
from tests.api.service import BROKEN, Service, new_item, run_api
from tests.support.backends import Leg, SqliteBackend
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import wait_until


def told(code: int, *arguments: str, url: str) -> str:
    ended = CliRunner().invoke(app, list(arguments), env={"UOW_DATABASE__URL": url})
    assert ended.exit_code == code, ended.output
    return ended.stdout if code == 0 else ended.stderr


def test_seed_adds_items_that_keep_the_promise_beside_a_service_that_runs(own_service: Service) -> None:
    own_service.start()
    url = own_service.backend.database_url
    for sum_of in (1201, 2402):  # more than two units, and once more
        assert "1201 more items" in told(0, "seed", "--items", "1201", url=url)
        assert own_service.backend.count("items") == sum_of
    assert own_service.backend.query(BROKEN) == []
    assert own_service.client().get("/items/").json()["items"][0]["name"] == "Red mug 1"


def test_seed_needs_the_schema(tmp_path: Path) -> None:
    said = told(65, "seed", url=f"sqlite:///{tmp_path}/x.db")
    assert "run `python -m api migrate`" in said
    assert list(tmp_path.iterdir()) == []
    assert "cannot seed" in told(69, "seed", url="postgresql://u:p@127.0.0.1:1/x")


def test_seed_says_nothing_but_its_result_where_nobody_watches(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    migrate(url)
    ended = run_api("seed", "--items", "3", env={"UOW_DATABASE__URL": url}, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{url} has 3 more items.\n", "")


def test_seed_shows_a_bar_at_a_terminal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    migrate(url)
    leader, terminal = pty.openpty()
    command = [sys.executable, "-m", "api", "seed", "--items", "501"]
    env = python_environment({"PYTHONPATH": str(ROOT), "UOW_DATABASE__URL": url, "TERM": "xterm"})
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, env=env, check=True, text=True
        )
        shown = os.read(leader, 100_000).decode()
    finally:
        os.close(terminal)
        os.close(leader)
    assert ended.stdout == f"{url} has 501 more items.\n"
    assert "501/501" in shown


def test_seed_that_is_interrupted_says_how_far_it_came(own_service: Service, tmp_path: Path) -> None:
    backend = own_service.backend
    url = backend.database_url
    migrate(url)
    log = tmp_path / "seed.log"
    env = python_environment({"PYTHONPATH": str(ROOT), "UOW_DATABASE__URL": url})
    command = [sys.executable, "-m", "api", "seed", "--items", "10000000"]
    child = Child(command, log=log, env=env, cwd=tmp_path)
    try:
        wait_until(lambda: backend.count("items") > 0 or not child.alive, "some are there")
        assert child.stop(signal.SIGINT) == 130
    finally:
        child.stop()
    added = backend.count("items")
    assert log.read_text() == f"{shown(url)}: interrupted: {added} of 10000000 items were added\n"
    assert added % 500 == 0
    backend.wait_until_at_rest()


def shown(url: str) -> str:
    return Settings.model_validate({"database": {"url": url}}).database.shown


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
def test_backup_copies_a_live_database_with_what_is_committed_only(
    service_leg: Leg, own_service: Service, tmp_path: Path
) -> None:
    assert service_leg == "sqlite"
    own_service.start()
    url = own_service.backend.database_url
    new_item(own_service.client(), stock=3)
    live = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    with closing(live):
        live.execute("BEGIN IMMEDIATE")
        live.execute("UPDATE items SET name = 'half done'")
        target = tmp_path / "copy.db"
        assert "is a copy of" in told(0, "backup", str(target), url=url)
        live.execute("ROLLBACK")
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT name, stock FROM items").fetchall() == [("Mug", 3)]
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert "is there already" in told(1, "backup", str(target), url=url)
    assert [*tmp_path.glob("*.part")] == []


def test_backup_is_one_moment_of_a_database_that_is_written(tmp_path: Path) -> None:
    """Every copy holds as many receipts as items, whatever is added meanwhile; nobody else may read it."""
    url = f"sqlite:///{tmp_path}/x.db"
    migrate(url)
    (tmp_path / "x.db").chmod(0o640)
    backend = SqliteBackend(tmp_path)
    backend.path = tmp_path / "x.db"
    env = python_environment({"PYTHONPATH": str(ROOT), "UOW_DATABASE__URL": url})
    command = [sys.executable, "-m", "api", "seed", "--items", "10000000"]
    writer = Child(command, log=tmp_path / "seed.log", env=env, cwd=tmp_path)
    try:
        wait_until(lambda: backend.count("items") > 0 or not writer.alive, "some are there")
        counts = []
        for number in range(4):
            target = tmp_path / f"copy {number}.db"
            told(0, "backup", str(target), url=url)
            assert stat.S_IMODE(target.stat().st_mode) == 0o640
            with closing(sqlite3.connect(target)) as copy:
                assert copy.execute(BROKEN).fetchall() == []
                counts += copy.execute("SELECT count(*) FROM items").fetchone()
        assert writer.alive
    finally:
        writer.stop()
    assert counts == sorted(counts)
    assert all(count > 0 and count % 500 == 0 for count in counts)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql+asyncpg://u:secret@localhost/x?ssl=require",
            "use pg_dump --format=custom --file=copy.db postgresql://u@localhost/x\n",
        ),
        ("sqlite://", "in the memory of one process"),
        ("sqlite:///missing.db", "missing.db: there is no such file"),
    ],
)
def test_backup_says_why_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = told(1, "backup", "copy.db", url=url)
    assert message in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["missing/copy.db", "x.db/copy.db"])
def test_backup_to_a_folder_that_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.db").touch()
    said = told(1, "backup", target, url="sqlite:///x.db")
    assert f"{target}: there is no folder {(tmp_path / target).parent}: make it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


def test_what_is_no_database_is_not_kept_as_a_copy(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("something else " * 100, encoding="utf-8")
    said = told(1, "backup", str(tmp_path / "copy.db"), url=f"sqlite:///{tmp_path}/x.db")
    assert "file is not a database" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
