"""The plug-in as its users have it: a run of pytest, and the programs of docs/testing.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import programs
from uow.testing import plugin

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "testing.md"

CONFTEST = """
import pytest
from sqlalchemy import text
from uow import Database

pytest_plugins = ["uow.testing.plugin"]
database = Database("sqlite:///own.db")

@pytest.fixture(scope="session", autouse=True)
def tables():
    with database, database.new_unit() as unit:
        unit.sync_session.execute(text("CREATE TABLE items (name TEXT)"))

@pytest.fixture
def uow_database():
    return database

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TESTS = """
import pytest
from sqlalchemy import text
from uow import on_commit

ADD = text("INSERT INTO items VALUES ('pen')")
ALL = text("SELECT count(*) FROM items")

@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.anyio
async def test_async(uow_probe, uow_database, again):
    async with uow_database.new_unit() as unit:
        await unit.session.execute(ADD)
    async with uow_database.new_unit(read_only=True) as unit:
        assert await unit.session.scalar(ALL) == 1
    uow_probe.assert_committed(1)

@pytest.mark.rolled_back(run_callbacks=False, wait=1)
def test_sync(uow_probe, uow_database):
    with uow_database.new_unit() as unit:
        unit.sync_session.execute(ADD)
        on_commit(pytest.fail)
    assert uow_probe.callbacks == [pytest.fail]

def test_without(uow_database):
    with uow_database.new_unit(read_only=True) as unit:
        assert unit.sync_session.scalar(ALL) == 0
    uow_database.dispose_sync()
"""


def run_pytest(folder: Path, **files: str) -> str:
    """What pytest says of these files, run in a folder of their own; warnings are errors."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--strict-markers",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
    ]
    if "TestClient" in files["conftest"]:  # it says that it would rather have another package than httpx
        command += ["-W", "ignore::starlette.exceptions.StarletteDeprecationWarning"]
    done = subprocess.run(
        [*command, "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_plug_in_serves_sync_and_async_tests(tmp_path: Path) -> None:
    assert "4 passed" in run_pytest(tmp_path, conftest=CONFTEST, test_own=TESTS)


def test_the_tests_of_the_documentation_pass(tmp_path: Path) -> None:
    conftest, *others = [program.text for program in programs(PAGE)]
    tests = "\n".join(others)
    said = run_pytest(tmp_path, conftest=conftest, test_items=tests)
    assert f"{tests.count('def test_')} passed" in said, said


unset = plugin.uow_database


def test_a_database_that_was_not_named_is_asked_for(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="uow_database"):
        request.getfixturevalue("unset")


def test_the_marker_is_declared(pytestconfig: pytest.Config) -> None:
    plugin.pytest_configure(pytestconfig)
    assert any(line.startswith("rolled_back(") for line in pytestconfig.getini("markers"))


def test_an_app_does_not_load_it() -> None:
    """And works where it is not there."""
    program = "import sys; sys.modules['uow.testing'] = None; import examples.quickstart"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
