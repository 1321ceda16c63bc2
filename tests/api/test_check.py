"""`python -m api check`: what a start needs, tried without a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.migrations import migrate
from tests.api.service import run_api, write_config
from tests.support.backends import Backend, Mode, PostgresBackend


def checked(folder: Path, code: int, **sections: dict[str, object]) -> dict[str, dict[str, Any]]:
    path = write_config(folder / "a.toml", sections)
    ended = run_api("check", "--json", "--config", str(path), cwd=folder)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hunter2" not in ended.stdout + ended.stderr
    found = {each["what"]: each for each in json.loads(ended.stdout)}
    assert all(each["ok"] for each in found.values()) == (code == 0)
    return found


@pytest.mark.modes("async")
def test_a_database_that_is_ready_is_exit_code_0(backend: Backend, mode: Mode, tmp_path: Path) -> None:
    assert mode == "async"
    found = checked(tmp_path, 0, database={"url": backend.database_url})
    assert found["migrations"]["said"] == "at none: the start migrates"
    never: dict[str, object] = {"url": backend.database_url, "migrate_on_start": "never"}
    found = checked(tmp_path, 65, database=never)
    assert "run `python -m api migrate`" in found["migrations"]["said"]
    migrate(backend.database_url)
    assert checked(tmp_path, 0, database=never)["migrations"]["said"] == "at revision 0003"


@pytest.mark.backends("pg18")
def test_more_connections_than_postgresql_has_are_found(postgres: PostgresBackend, tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        2,
        database={"url": postgres.database_url, "pool_size": 40, "pool_overflow": 10},
        server={"workers": 3},
    )
    said = found["connections"]["said"]
    assert "2 engines x 50 connections x 3 workers = 300" in said
    assert "[database] pool_size: " in said
    assert "lower it or [server] workers" in said


def test_a_server_that_is_away_is_exit_code_69(tmp_path: Path) -> None:
    found = checked(tmp_path, 69, database={"url": "postgresql://u:hunter2@127.0.0.1:1/x"})
    assert "cannot be reached" in found["database"]["said"]
    assert "is it running" in found["database"]["said"]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = checked(tmp_path, 0, database={"url": "sqlite:///x.db"})
    assert "the first start makes it" in found["database"]["said"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
    found = checked(tmp_path, 69, database={"url": "sqlite:///missing/x.db"})
    assert "make it, or name another file" in found["database"]["said"]


def test_wiring_that_would_break_a_promise_is_found(tmp_path: Path) -> None:
    found = checked(tmp_path, 2, database={"url": "sqlite:///x.db", "pool_size": 1})
    assert "pool-too-small" in found["wiring"]["said"]


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    path = write_config(tmp_path / "a.toml", {"server": {"prot": 1}})
    ended = run_api("check", "--config", str(path), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
