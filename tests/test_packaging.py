"""What a user installs: the wheel of `uow`, what it needs, and the locks of a checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

PUBLIC_NAMES = {
    "Database",
    "UnitOfWork",
    "UnitOfWorkMiddleware",
    "UnitSession",
    "current_session",
    "current_sync_session",
    "current_unit",
    "errors",
    "new_unit",
    "on_commit",
    "unit_options",
}

# What the core must not need: everything else that a checkout installs.
OPTIONAL_PACKAGES = (
    "aiosqlite",
    "alembic",
    "asyncpg",
    "fastapi",
    "httpx",
    "orjson",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "structlog",
    "typer",
    "uvicorn",
    "uvloop",
)

LOOK_AROUND = """
import json, sys
site, blocked = json.loads(sys.argv[1])
sys.path.insert(0, site)
sys.modules.update(dict.fromkeys(blocked))  # None: importing it is an ImportError
import uow
names = {}
for name in uow.__all__:
    exec(f"from uow import {name}", names)
print(json.dumps({"file": uow.__file__, "names": sorted(uow.__all__)}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published, built from the checkout without a network."""
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def files(wheel: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_the_wheel_is_for_any_machine(wheel: Path, metadata: Message) -> None:
    assert wheel.name == f"uow-{metadata['Version']}-py3-none-any.whl"
    assert metadata["Name"] == "uow"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_the_wheel_holds_the_library_and_nothing_else(files: list[PurePosixPath]) -> None:
    folders = {name.parts[0] for name in files}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"uow"}
    assert PurePosixPath("uow/py.typed") in files
    assert any(name.match("*.dist-info/licenses/LICENSE") for name in files)


def test_the_wheel_holds_every_file_of_the_library(files: list[PurePosixPath]) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "uow").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {str(name) for name in files if name.parts[0] == "uow"} == source


def test_the_core_needs_three_packages(metadata: Message) -> None:
    core = [requirement for requirement in requirements(metadata) if requirement.marker is None]
    assert {requirement.name.lower() for requirement in core} == {
        "anyio",
        "sqlalchemy",
        "starlette",
    }
    (sqlalchemy,) = (each for each in core if each.name.lower() == "sqlalchemy")
    assert sqlalchemy.extras == {"asyncio"}
    assert sqlalchemy.specifier.contains("2.1.9")
    assert not sqlalchemy.specifier.contains("2.2.0")


def test_the_extras_are_the_drivers_and_the_service(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {"sqlite", "postgresql", "service", "webhooks"}
    of_extra = {
        extra: {
            each.name
            for each in requirements(metadata)
            if each.marker is not None and each.marker.evaluate({"extra": extra})
        }
        for extra in ("sqlite", "postgresql", "service", "webhooks")
    }
    assert of_extra["sqlite"] == {"aiosqlite"}
    assert of_extra["webhooks"] == {"httpx"}
    assert of_extra["postgresql"] == {"asyncpg", "psycopg"}
    assert of_extra["sqlite"] | of_extra["postgresql"] <= of_extra["service"]


@pytest.mark.parametrize("blocked", [(), OPTIONAL_PACKAGES], ids=["all-installed", "core-only"])
def test_the_public_names_come_from_the_wheel(wheel: Path, tmp_path: Path, blocked: tuple[str, ...]) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    looked = subprocess.run(
        # -I: neither the folder it runs in nor PYTHONPATH may lend it the checkout's own `uow`.
        [sys.executable, "-I", "-W", "error", "-c", LOOK_AROUND, json.dumps([str(site), blocked])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 0, looked.stderr
    seen = json.loads(looked.stdout)
    assert Path(seen["file"]).is_relative_to(site)
    assert set(seen["names"]) == PUBLIC_NAMES


LOCKS = ("requirements.lock", "requirements-dev.lock")


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Each package of a lock, with its version and how many files of it may be installed."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    packages: dict[str, tuple[str, int]] = {}
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            pinned = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", line)
            assert pinned, f"{name}: not pinned to one version: {line}"
            packages[pinned[1]] = (pinned[2], line.count("--hash=sha256:"))
    return packages


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_versions_and_hashes_but_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|file:", text)
    assert all(hashes for _, hashes in locked(name).values())


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_for_every_platform(name: str) -> None:
    packages = locked(name)
    compiled = ("asyncpg", "greenlet", "httptools", "pydantic-core", "sqlalchemy", "uv", "uvloop")
    assert {package: packages[package][1] > 10 for package in compiled} == dict.fromkeys(compiled, True)


def test_what_is_tested_is_what_runs() -> None:
    run, dev = (locked(name) for name in LOCKS)
    assert {name: dev.get(name) for name in run} == run


def test_the_locks_fit_the_metadata(metadata: Message) -> None:
    packages = locked("requirements-dev.lock")
    for requirement in requirements(metadata):
        version, _ = packages[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"
