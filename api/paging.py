"""Keyset pages: a page begins after the last id of the page before, so no row is shown twice."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from api.models import MAX_ID, Numbered
from api.problems import DomainError
from uow.problems import Problem

Row = TypeVar("Row", bound=Numbered)


class InvalidCursor(DomainError):
    """A cursor is used as a page of the same list gave it out; nobody makes one up."""

    problem = Problem("invalid-cursor", "The cursor is not one of this list", 422)

    def __init__(self) -> None:
        super().__init__("Use next_cursor of the page before as it is, or leave the cursor out.")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows in the order of their ids, and the cursor of what follows them."""

    items: Sequence[Row]
    next_cursor: str | None

    @classmethod
    def of(cls, kind: str, rows: Sequence[Row], limit: int) -> Page[Row]:
        """The first `limit` rows; whether there are more tells one row too many in `rows`."""
        shown = rows[:limit]
        return cls(shown, cursor_after(kind, shown[-1].id) if len(rows) > limit else None)

    def links(self, path: str, limit: int) -> dict[str, str]:
        """The header that leads to the next page (RFC 8288), unless this is the last one."""
        if self.next_cursor is None:
            return {}
        return {"Link": f'<{path}?limit={limit}&cursor={self.next_cursor}>; rel="next"'}


def cursor_after(kind: str, last_id: int) -> str:
    return urlsafe_b64encode(f"{kind}:{last_id}".encode()).decode().rstrip("=")


def id_before(kind: str, cursor: str | None) -> int:
    """The id after which the page begins: 0 without a cursor. A foreign one is `InvalidCursor`."""
    if cursor is None:
        return 0
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        last_id = int(text.removeprefix(f"{kind}:"))
    except ValueError:
        raise InvalidCursor from None
    # Decoding is lenient (blanks, "007"); only what was given out comes back equal.
    if not 0 < last_id <= MAX_ID or cursor_after(kind, last_id) != cursor:
        raise InvalidCursor
    return last_id
