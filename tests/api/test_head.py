"""HEAD is GET without the body (RFC 9110, section 9.3.2)."""

from __future__ import annotations

import httpx
import pytest

from tests.api.service import Service, assert_problem, new_item, new_order, on_one_engine

# Different in each answer, whatever the method.
OF_ONE_ANSWER = {"date", "x-request-id"}


def headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OF_ONE_ANSWER}


def test_head_has_the_headers_of_get(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client, stock=5)
    order_id = new_order(client, (item_id, 1)).json()["id"]
    receipt = client.post(f"/items/{item_id}/receipts", json={"quantity": 1}).headers["location"]
    for path in (
        "/items/?limit=1",
        f"/items/{item_id}",
        receipt,
        f"/orders/{order_id}",
        "/problems/out-of-stock",
        "/livez",
        "/readyz",
        "/openapi.json",
        "/docs",
    ):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert headers(head) == headers(got)
        assert int(head.headers["content-length"]) == len(got.content) > 0
        line = service.line_of(head)
        assert (line["method"], line["path"]) == ("HEAD", path.partition("?")[0])
    # The body that was left out is not the beginning of the next answer on the connection.
    assert client.get("/livez").json() == {"status": "alive"}


def test_head_knows_what_a_client_has_already(client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    tag = client.head(path).headers["etag"]
    answer = client.head(path, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.headers["etag"], answer.content) == (304, tag, b"")
    assert client.head(path, headers={"If-Match": '"another"'}).status_code == 412


@pytest.mark.parametrize(
    ("path", "status"),
    [("/items/9007199254740991", 404), ("/items/x", 422), ("/items/?page=2", 422), ("/nope", 404)],
)
@on_one_engine
def test_head_fails_as_get_does(client: httpx.Client, path: str, status: int) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (status, b"")
    # The names of the requests in the documents are of one length.
    assert headers(head) == headers(got)


@on_one_engine
def test_head_is_refused_where_there_is_no_get(client: httpx.Client) -> None:
    answer = client.head("/orders/1/cancel")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
    assert_problem(client.get("/orders/1/cancel"), 405, "method-not-allowed")


def test_head_only_reads(service: Service, client: httpx.Client) -> None:
    """The database would refuse a write: its unit is a GET's."""
    path = f"/items/{new_item(client)}"
    got, head = service.line_of(client.get(path)), service.line_of(client.head(path))
    assert (head["statements"], head["outcome"]) == (got["statements"], got["outcome"])
    assert head["route"] == "/items/{item_id}"
