"""An example as a server process, its database file, and the ways to look at both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.backends import SqliteBackend
from tests.support.server import Serve, UvicornServer
from tests.support.wait import wait_until

COMMIT_IS_REFUSED = """
CREATE TABLE watched (item_id INTEGER REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TRIGGER watch AFTER INSERT ON items WHEN NEW.name = 'refused at commit'
BEGIN INSERT INTO watched VALUES (-1); END;
"""


class Example:
    """One of the examples, served, and its database file. `app` is a factory of `tests/example_apps.py`."""

    def __init__(
        self, app: str, folder: Path, serve: Serve, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        folder.mkdir()
        self.backend = SqliteBackend(folder)
        self.backend.path = folder / "items.db"
        self.server: UvicornServer = serve(
            f"tests.example_apps:{app}",
            backend=self.backend,
            env={"TESTS_FOLDER": str(folder), **(env or {})},
            **options,
        )
        self.client = self.server.client()
        self.backend.execute(COMMIT_IS_REFUSED)

    def names(self) -> list[str]:
        """The names of the items that a second connection finds."""
        self.backend.wait_until_at_rest()
        return [name for (name,) in self.backend.query("SELECT name FROM items ORDER BY id")]

    def empty(self) -> None:
        """Have no items."""
        self.backend.wait_until_at_rest()
        self.backend.execute("DELETE FROM items")

    def wait_until_logged(self, text: str) -> None:
        wait_until(lambda: text in self.server.log(), f"{text!r} in the log of the server")

    def post(self, path: str, name: str) -> httpx.Response:
        return self.client.post(path, params={"name": name})
