"""Keyset pages: every row once and in order, whatever is written between two pages."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator

import httpx
import pytest

from api.paging import cursor_after
from tests.api.service import assert_problem, new_item, new_order, on_one_engine

LISTS = ["items", "orders"]


def new_row(client: httpx.Client, kind: str) -> int:
    item_id = new_item(client, stock=1)
    return item_id if kind == "items" else int(new_order(client, (item_id, 1)).json()["id"])


def pages(client: httpx.Client, kind: str, cursor: str | None, limit: int) -> Iterator[list[int]]:
    """The ids of each page, asked for as the caller goes on."""
    while True:
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"/{kind}/", params=query).json()
        yield [row["id"] for row in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return


@pytest.mark.parametrize("kind", LISTS)
def test_pages_show_every_row_once_while_rows_are_inserted(client: httpx.Client, kind: str) -> None:
    rows = [new_row(client, kind) for _ in range(7)]
    shown = []
    for page in pages(client, kind, cursor_after(kind, rows[0]), limit=3):
        shown.append(page)
        if len(shown) < 3:
            rows.append(new_row(client, kind))
    assert [row for page in shown for row in page] == rows[1:]
    assert [len(page) for page in shown] == [3, 3, 2]


@pytest.mark.parametrize("kind", LISTS)
def test_the_first_page_needs_no_cursor_and_a_full_last_one_has_none(client: httpx.Client, kind: str) -> None:
    rows = [new_row(client, kind) for _ in range(2)]
    everything = [row for page in pages(client, kind, None, limit=100) for row in page]
    assert everything == sorted(set(everything))
    assert everything[-2:] == rows
    page = client.get(f"/{kind}/", params={"limit": 1, "cursor": cursor_after(kind, rows[0])}).json()
    assert ([row["id"] for row in page["items"]], page["next_cursor"]) == ([rows[1]], None)


def test_a_page_goes_on_where_its_cursor_was_deleted(client: httpx.Client) -> None:
    first, second, third = (new_item(client) for _ in range(3))
    page = client.get("/items/", params={"limit": 1, "cursor": cursor_after("items", first)}).json()
    assert [item["id"] for item in page["items"]] == [second]
    assert client.delete(f"/items/{second}").status_code == 204
    page = client.get("/items/", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert [item["id"] for item in page["items"]] == [third]


@pytest.mark.parametrize("kind", LISTS)
def test_the_link_of_a_page_leads_to_the_next(client: httpx.Client, kind: str) -> None:
    first, second, third = (new_row(client, kind) for _ in range(3))
    page = client.get(f"/{kind}/", params={"limit": 1, "cursor": cursor_after(kind, first)})
    assert page.headers["link"] == f'<{page.links["next"]["url"]}>; rel="next"'
    assert page.json()["next_cursor"] in page.links["next"]["url"]
    assert [row["id"] for row in page.json()["items"]] == [second]
    page = client.get(page.links["next"]["url"])
    assert [row["id"] for row in page.json()["items"]] == [third]
    assert "link" not in page.headers


def test_a_page_after_the_last_row_is_empty(client: httpx.Client) -> None:
    page = client.get("/items/", params={"cursor": cursor_after("items", 2**53 - 1)}).json()
    assert page == {"items": [], "next_cursor": None}


def test_listed_rows_are_those_that_are_shown_alone(client: httpx.Client) -> None:
    item_id = new_item(client, stock=3)
    order = new_order(client, (item_id, 2)).json()
    for kind, row_id in (("items", item_id), ("orders", order["id"])):
        page = client.get(f"/{kind}/", params={"limit": 1, "cursor": cursor_after(kind, row_id - 1)}).json()
        assert page["items"] == [client.get(f"/{kind}/{row_id}").json()]


def encoded(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@on_one_engine
@pytest.mark.parametrize(
    "cursor",
    [
        pytest.param("", id="empty"),
        pytest.param("1", id="a number"),
        pytest.param("%%%", id="no base64"),
        pytest.param("\x00", id="NUL"),
        pytest.param("é", id="not ASCII"),
        pytest.param(encoded("items:0"), id="zero"),
        pytest.param(encoded("items:-1"), id="negative"),
        pytest.param(encoded("items:007"), id="other digits"),
        pytest.param(encoded("items:1_0"), id="other spelling"),
        pytest.param(encoded(f"items:{2**53}"), id="past the last id"),
        pytest.param(encoded("1"), id="no kind"),
        pytest.param(encoded("orders:1"), id="of another list"),
        pytest.param(encoded("items:1") + "==", id="padded"),
        pytest.param(urlsafe_b64encode(b"\xff\xfe").decode(), id="no text"),
    ],
)
def test_a_foreign_cursor_is_refused(client: httpx.Client, cursor: str) -> None:
    assert_problem(client.get("/items/", params={"cursor": cursor}), 422, "invalid-cursor")


@on_one_engine
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    "limit", ["0", "-1", "101", "", "x", "1.0", "1_0", "+1", "1e1", "\uff11", "9" * 5000]
)
def test_a_limit_is_a_number_from_1_to_100(client: httpx.Client, kind: str, limit: str) -> None:
    assert_problem(client.get(f"/{kind}/", params={"limit": limit}), 422, "invalid-request")


def test_a_cursor_is_never_longer_than_a_page_gives_out(client: httpx.Client) -> None:
    assert len(cursor_after("orders", 2**53 - 1)) < 100
    assert_problem(client.get("/items/", params={"cursor": "a" * 101}), 422, "invalid-request")
