"""`python -m api seed` and `backup`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from tests.api.service import BROKEN, Service, new_item
from tests.support.backends import Leg


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
    said = told(1, "seed", url=f"sqlite:///{tmp_path}/x.db")
    assert "run `python -m api migrate`" in said
    assert "cannot seed" in told(1, "seed", url="postgresql://u:p@127.0.0.1:1/x")


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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:secret@localhost/x", "use pg_dump"),
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


def test_what_is_no_database_is_not_kept_as_a_copy(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("something else " * 100, encoding="utf-8")
    said = told(1, "backup", str(tmp_path / "copy.db"), url=f"sqlite:///{tmp_path}/x.db")
    assert "file is not a database" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
