"""A hot standby of a PostgreSQL server of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.support.postgres import PostgresServer
from tests.support.wait import wait_until


class StandbyServer(PostgresServer):
    """Follows a primary asynchronously from its first start on, until it is promoted."""

    def __init__(
        self, binaries: Path, primary: PostgresServer, *, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(binaries, settings=settings, identity=primary.identity)
        self._primary = primary

    def wait_until_level(self) -> None:
        """Return when it has all that the primary has written."""
        position = self._primary.query("postgres", "SELECT pg_current_wal_lsn()")[0]
        level = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(lambda: bool(self.query("postgres", level, position)[0][0]), "the standby is level")

    def leave(self) -> None:
        """Follow no more, and stay a standby: what the primary does from here on is unknown to it."""
        with self.connect() as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
        followers = "SELECT count(*) FROM pg_stat_replication"
        wait_until(lambda: self._primary.query("postgres", followers) == [(0,)], "the standby has left")

    def promote(self) -> None:
        """Make it a primary, on a timeline of its own."""
        assert self.query("postgres", "SELECT pg_promote(true, 60)") == [(True,)]

    def _initialise(self) -> None:
        self._prepare_folder()
        link = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "postgres"]
        copy = self._child_of(
            "pg_basebackup", "-D", str(self.data), *link, "-R", "--checkpoint=fast", "--no-sync"
        )
        wait_until(lambda: not copy.alive, "the primary is copied", limit=120)
        if copy.stop() != 0:
            raise RuntimeError(f"pg_basebackup failed:\n{self.log()}")

    def _is_ready(self, state: str) -> bool:
        return state in {"ready", "standby"}
