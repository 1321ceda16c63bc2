"""API keys: how one is made, what is kept of it, and how one that is sent is compared.

A key is `inv_<id>_<secret>`. The id is public: it finds the entry, and may stand in a log. The secret is
256 bits of the system's randomness; it is shown once, and what is kept is a salted hash of the whole key.

The hash is a fast one, BLAKE2b, and on purpose. A slow hash such as scrypt makes it dear to guess what
people think up; nobody guesses 256 random bits at any speed. It would only cost every request some tens
of milliseconds, and let anybody who sends wrong keys occupy the processors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from secrets import token_bytes, token_hex
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from api.section import Section

ID_BYTES = 8
SECRET_BYTES = 32
SALT_BYTES = 16  # as much as BLAKE2b takes
DIGEST_BYTES = 32

WHOLE = re.compile(rf"inv_([0-9a-f]{{{2 * ID_BYTES}}})_[0-9a-f]{{{2 * SECRET_BYTES}}}")
ID = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")
HASH = re.compile(rf"blake2b:([0-9a-f]{{{2 * SALT_BYTES}}}):([0-9a-f]{{{2 * DIGEST_BYTES}}})")

# So that a hash of the same bytes for another purpose is another one.
_PURPOSE = b"inventory key"


Scope = Literal["read", "write"]

_FORMS = {
    "name": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"), "is 1 to 64 letters, digits, and . _ @ -"),
    "id": (ID, "is not the id of a key that `python -m api key` has made"),
    "hash": (HASH, "is not a hash that `python -m api key` has made; the key itself never stands here"),
}


class Key(Section):
    """What is kept of a key: one `[[security.keys]]`."""

    name: str = Field(description="Who has it; the log says so.")
    id: str = Field(description="Its public part, which finds this entry.")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="What it may do.")
    hash: str = Field(repr=False, description="Its salted hash.")

    @field_validator("name", "id", "hash")
    @classmethod
    def _has_its_form(cls, value: str, info: ValidationInfo) -> str:
        form, words = _FORMS[info.field_name or ""]
        if not form.fullmatch(value):
            raise ValueError(words)
        return value

    @field_validator("scopes")
    @classmethod
    def _are_different(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if len({*scopes}) < len(scopes):
            raise ValueError("names a scope twice")
        return scopes


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request: the name of the key, and what it may do."""

    name: str
    scopes: frozenset[str]


def new_key() -> tuple[str, str]:
    """A new id, and the key that has it."""
    key_id = token_hex(ID_BYTES)
    return key_id, f"inv_{key_id}_{token_hex(SECRET_BYTES)}"


def hash_of(key: str) -> str:
    """What to keep of a key."""
    salt = token_bytes(SALT_BYTES)
    return f"blake2b:{salt.hex()}:{_digest(key, salt).hex()}"


def hide_keys(text: str) -> str:
    """The text with the id in place of each whole key, for what is written to a log."""
    return WHOLE.sub(r"inv_\1_***", text)


class Keyring:
    """The keys of the service, to ask whose one is."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._known: dict[str, tuple[bytes, bytes, Principal | None]] = {}
        for key in keys:
            _, salt, digest = key.hash.split(":")
            principal = Principal(key.name, frozenset(key.scopes))
            self._known[key.id] = bytes.fromhex(salt), bytes.fromhex(digest), principal
        # An id that is unknown is compared as well, with what no key has: the time says nothing.
        self._nobody = token_bytes(SALT_BYTES), token_bytes(DIGEST_BYTES), None

    def holder_of(self, key: str) -> Principal | None:
        """Whose key this is; None if it is nobody's."""
        form = WHOLE.fullmatch(key)
        salt, digest, principal = self._known.get(form[1] if form else "", self._nobody)
        return principal if compare_digest(digest, _digest(key, salt)) else None


def _digest(key: str, salt: bytes) -> bytes:
    # Of the whole key: the hash of one id says nothing about a key with another.
    return blake2b(
        key.encode("latin-1", "replace"), digest_size=DIGEST_BYTES, salt=salt, person=_PURPOSE
    ).digest()
