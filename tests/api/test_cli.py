"""`python -m api`: what it prints, where it looks, and how it ends."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.commands import common
from tests.api.service import Service, run_api, write_config
from tests.support.backends import Leg
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import wait_until


def plain(text: str) -> str:
    """Typer's output without its frames."""
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", text).split())


def test_help_names_the_commands() -> None:
    ended = CliRunner().invoke(app, ["--help"])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "serve Serve the inventory" in plain(ended.stdout)
    assert "migrate Bring the schema of the database up to date." in plain(ended.stdout)


def test_every_exit_code_is_documented() -> None:
    codes = {value for value in vars(common).values() if type(value) is int}
    assert {1, 2, 65, 69} <= codes
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    _, _, told = plain(CliRunner().invoke(app, ["-h"]).stdout).partition("Exit codes: ")
    for code in codes:
        assert f"| {code} |" in page
        assert f"{code} " in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["sevre"], "No such command 'sevre'."), (["--prot", "1"], "No such option: --prot")],
)
def test_what_it_does_not_know_is_exit_status_2(arguments: list[str], message: str) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in plain(ended.stderr)


def test_a_start_says_where_to_look_and_a_signal_ends_it_in_order(own_service: Service) -> None:
    own_service.start()
    told = own_service.log()
    base_url = own_service.base_url
    assert f"Inventory is at {base_url}\n" in told
    assert f"  documentation  {base_url}/docs\n" in told
    assert f"  health         {base_url}/readyz\n" in told
    assert f"  database       {own_service.backend.database_url}\n" in told
    assert f"  settings       {own_service.config}\n" in told
    assert "not ready" not in told
    # A database that was empty is migrated by the start, on every engine.
    assert own_service.client().get("/readyz").status_code == 200
    assert own_service.terminate() == 0
    assert "Finished server process" in own_service.log()
    assert "Traceback" not in own_service.log()
    own_service.backend.wait_until_at_rest()


def test_without_command_and_file_it_serves_with_the_defaults(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    command = [sys.executable, "-m", "api", "--port", "0", "--host", "localhost"]
    env = python_environment({"PYTHONPATH": str(ROOT), "UOW_DATABASE__URL": "sqlite://"})
    child = Child(command, log=log, env=env, cwd=tmp_path)
    try:
        wait_until(lambda: "  settings " in log.read_text() or not child.alive, "it says where to look")
        told = log.read_text()
        (port,) = set(re.findall(r"Inventory is at http://(?:127\.0\.0\.1|\[::1\]):(\d+)", told))
        assert int(port) > 0
        assert "  settings       defaults (there is no config.toml here)" in told
        assert child.stop(signal.SIGINT) == 0
    finally:
        child.stop()
    assert "Traceback" not in log.read_text()
    assert list(tmp_path.iterdir()) == [log]


def test_a_start_that_does_not_migrate_says_what_is_missing(service_leg: Leg, own_service: Service) -> None:
    own_service.env["UOW_DATABASE__MIGRATE_ON_START"] = "never"
    own_service.start()
    assert (
        "  not ready      The schema is at revision none, the code needs 0003: "
        "run `python -m api migrate`, or newer code.\n" in own_service.log()
    )
    assert own_service.client().get("/readyz").status_code == 503
    assert own_service.backend.query(TABLES[service_leg]) == []
    ended = run_api("migrate", "--config", str(own_service.config))
    assert ended.returncode == 0
    assert ended.stdout == f"{own_service.backend.database_url} is at revision 0003.\n"
    assert own_service.client().get("/readyz").status_code == 200


TABLES: dict[Leg, str] = {
    "sqlite": "SELECT name FROM sqlite_master",
    "pg18": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
    "pgsystem": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
}


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize(
    ("url", "shown", "reason"),
    [
        ("sqlite:///missing/x.db", "sqlite:///missing/x.db", "unable to open database file"),
        ("postgresql://u:secret@127.0.0.1:1/x", "postgresql://u:***@127.0.0.1:1/x", "onnect"),
    ],
    ids=["sqlite", "postgresql"],
)
def test_a_database_that_cannot_be_migrated_ends_the_start_with_the_reason(
    tmp_path: Path, command: str, url: str, shown: str, reason: str
) -> None:
    path = write_config(tmp_path / "a.toml", {"database": {"url": url, "migrate_on_start": "always"}})
    ended = run_api(
        command, "--config", str(path), *(["--port", "0"] if command == "serve" else []), cwd=tmp_path
    )
    assert (ended.returncode, ended.stdout) == (69, "")
    assert "cannot migrate" in ended.stderr
    assert shown in ended.stderr
    assert reason in ended.stderr
    assert "secret" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_start_does_not_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    """With PostgreSQL the service starts, says that it is not ready, and is so when the database comes."""
    log = tmp_path / "out.log"
    env = python_environment({"UOW_DATABASE__URL": "postgresql://u:secret@127.0.0.1:1/x"})
    child = Child([sys.executable, "-m", "api", "--port", "0"], log=log, env=env, cwd=ROOT)
    try:
        wait_until(
            lambda: "  not ready " in log.read_text() or not child.alive, "it says that it is not ready"
        )
        assert child.stop(signal.SIGTERM) == 0
    finally:
        child.stop()
    assert "  not ready      The database cannot be reached: " in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "secret" not in log.read_text()
