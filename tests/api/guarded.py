"""The service with API keys, for the tests that attack it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.commands.key import block_of
from api.keys import Key, hash_of, new_key
from tests.api.service import Service
from tests.support.backends import SqliteBackend

OURS = "https://shop.example.com"


@dataclass(frozen=True)
class Made:
    """A key, and what the service keeps of it."""

    key: str
    entry: Key

    @property
    def secret(self) -> str:
        return self.key.rpartition("_")[2]

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def made(name: str, *scopes: str) -> Made:
    key_id, key = new_key()
    entry = {"name": name, "id": key_id, "scopes": scopes, "hash": hash_of(key)}
    return Made(key, Key.model_validate(entry))


@dataclass(frozen=True)
class Keys:
    """One key for each combination of scopes."""

    reader: Made = field(default_factory=lambda: made("reader", "read"))
    writer: Made = field(default_factory=lambda: made("writer", "write"))
    both: Made = field(default_factory=lambda: made("both", "read", "write"))

    @property
    def all(self) -> tuple[Made, ...]:
        return self.reader, self.writer, self.both

    def section(self, **more: object) -> dict[str, Any]:
        """The [security] of a service that knows them."""
        entries = [each.entry.model_dump() for each in self.all]
        return {"authentication": "api-keys", "keys": entries, **more}


class GuardedService(Service):
    """`python -m api serve` with keys, hosts and an origin, and all that can be logged in its log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SqliteBackend(folder), folder)
        self.keys = Keys()
        text = self.config.read_text(encoding="utf-8").replace("[logging]", '[logging]\nlevel = "debug"')
        lines = [
            "[security]",
            'authentication = "api-keys"',
            'trusted_hosts = "127.0.0.1, www.own.example, *.example.org"',
            f'cors_origins = "{OURS}"',
            "hsts_max_age = 3600",
            *(block_of(each.entry) for each in self.keys.all),
        ]
        self.config.write_text("\n".join([text, *lines]), encoding="utf-8")


def names(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers}
