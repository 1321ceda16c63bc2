"""Runs hazards against a peer."""

import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.hazards.catalogue import Hazard
from benchmarks.hazards.findings import HELD, Finding
from benchmarks.hazards.peers import Peer
from benchmarks.hazards.stage import Hanging, Stage, make_tables
from tests.support.backends import Backend, PostgresBackend, SqliteBackend
from tests.support.postgres import PostgresServers
from tests.support.processes import clean_environment
from tests.support.server import ROOT, UvicornServer
from tests.support.wait import NeverHappened

Tell = Callable[[Peer, str], None]

_PACKAGES = ("fastapi", "starlette", "sqlalchemy", "asyncpg", "psycopg", "aiosqlite", "uvicorn")
_VERSIONS = """
import json, platform, sqlite3, sys
from importlib.metadata import version
print(json.dumps({"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
      | {name: version(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class PeerResult:
    """What was found for one peer, by the names of the hazards, and with which versions."""

    date: str
    versions: Mapping[str, str]
    findings: Mapping[str, Finding]


class Runner:
    """Holds what all runs share: the PostgreSQL server, and a folder for databases and logs."""

    def __init__(self, pythons: Mapping[str, Path]) -> None:
        self._pythons = pythons
        self._postgres = PostgresServers()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hazards-"))
        self._folder = Path(folder)
        self._stack.callback(self._postgres.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, peer: Peer, hazards: Sequence[Hazard], tell: Tell) -> PeerResult:
        """All these hazards, and with which versions."""
        findings: dict[str, Finding] = {}
        for hazard, finding in self.findings(peer, hazards):
            findings[hazard.name] = finding
            tell(peer, f"{hazard.name}: {finding.verdict} ({finding.seen})")
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        listed = {hazard.name: findings[hazard.name] for hazard in hazards}
        return PeerResult(today, self._versions(peer), listed)

    def findings(self, peer: Peer, hazards: Sequence[Hazard]) -> Iterator[tuple[Hazard, Finding]]:
        """What becomes of each. Those that need the same server share it, until one goes wrong."""
        groups: dict[tuple[object, ...], list[Hazard]] = {}
        for hazard in hazards:
            groups.setdefault(hazard.needs, []).append(hazard)
        for waiting in groups.values():
            while waiting:
                yield from self._on_one_server(peer, waiting)

    def _on_one_server(self, peer: Peer, waiting: list[Hazard]) -> Iterator[tuple[Hazard, Finding]]:
        with self.stage(peer, waiting[0]) as stage:
            untouched = True
            while waiting and untouched:
                hazard = waiting.pop(0)
                finding, untouched = checked(hazard, stage)
                yield hazard, finding
                if waiting and untouched:
                    stage.reset()

    @contextlib.contextmanager
    def stage(self, peer: Peer, hazard: Hazard) -> Iterator[Stage]:
        """A fresh server on a fresh database."""
        folder = Path(tempfile.mkdtemp(prefix=f"{peer.name}-", dir=self._folder))
        backend = self._backend(hazard, folder)
        server = UvicornServer(
            f"{peer.module}:create_app",
            python=self._python(peer),
            folder=folder,
            env={**backend.environment(), **hazard.env},
            graceful_shutdown=hazard.graceful_shutdown,
            extra=["--no-access-log"],
        )
        try:
            make_tables(backend)
            server.start()
            yield Stage(peer, backend, server)
        finally:
            server.close()
            backend.drop()

    def _backend(self, hazard: Hazard, folder: Path) -> Backend:
        if hazard.engine == "sqlite":
            return SqliteBackend(folder)
        return PostgresBackend("pg18", self._postgres.get("pg18"), folder)

    def _python(self, peer: Peer) -> Path:
        return self._pythons.get(peer.environment, Path(sys.executable))

    def _versions(self, peer: Peer) -> dict[str, str]:
        packages = [*_PACKAGES, *([peer.package] if peer.package not in (None, "uow") else [])]
        command = [str(self._python(peer)), "-c", _VERSIONS, *map(str, packages)]
        told = subprocess.run(command, capture_output=True, check=True, env=clean_environment())
        versions: dict[str, str] = json.loads(told.stdout)
        server = self._postgres.get("pg18").query("postgres", "SHOW server_version")[0][0]
        # `uow` is not installed in any of the environments: it is the checkout itself.
        ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        return {**versions, "postgresql": str(server), "uow": ours}


def checked(hazard: Hazard, stage: Stage) -> tuple[Finding, bool]:
    """What the hazard finds, and whether the server is as it was before: it lives, and nothing went wrong."""
    try:
        finding = hazard.check(stage)
        if stage.leaks():
            return finding.with_leak(), False
    except Hanging as error:
        return Finding("hang", str(error)), False
    except NeverHappened as error:
        raise RuntimeError(f"{stage.peer.name}, {hazard.name}:\n{stage.server.log()}") from error
    return finding, finding.verdict == HELD and stage.server.alive
