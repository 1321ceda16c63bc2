"""Every refusal is a problem document with a type that stays, and no input makes the service fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.problems import DomainError
from api.settings import Settings
from tests.api.service import Service, assert_problem, in_process, new_item, new_order, on_one_engine
from tests.support.backends import SqliteBackend

JSON = {"Content-Type": "application/json"}
ITEM = b'{"name": "Mug", "price": 1}'
DEEP = 100_000

BODIES = {
    "nothing": (b"", 422),
    "half of an object": (b'{"name":', 422),
    "a number": (b"1", 422),
    "null": (b"null", 422),
    "a list": (b"[]", 422),
    "not UTF-8": (b'{"name": "\xff", "price": 1}', 400),
    "half of UTF-16": (b"\xff\xfe{", 400),
    "a lone surrogate": (rb'{"name": "\ud800", "price": 1}', 422),
    "a lone surrogate as a field": (rb'{"name": "Mug", "price": 1, "\ud800": 1}', 422),
    "NUL": (rb'{"name": "a\u0000b", "price": 1}', 422),
    "NUL as a field": (rb'{"name": "Mug", "price": 1, "\u0000": 1}', 422),
    "infinity": (b'{"name": "Mug", "price": 1e400}', 422),
    "not a number": (b'{"name": "Mug", "price": NaN}', 422),
    "more than 64 bits": (b'{"name": "Mug", "price": 9223372036854775808}', 422),
    "five thousand digits": (b'{"name": "Mug", "price": ' + b"9" * 5000 + b"}", 400),
    "a megabyte of a name": (b'{"price": 1, "name": "' + b"x" * 1_000_000 + b'"}', 422),
    "a megabyte of a field": (b'{"name": "Mug", "price": 1, "' + b"x" * 1_000_000 + b'": 1}', 422),
    "thousands of fields": (json.dumps({str(number): 0 for number in range(20_000)}).encode(), 422),
    "thousands of lists": (b"[" * DEEP, 400),
    "thousands of objects": (b'{"a":' * DEEP, 400),
}
BY_STATUS = {400: "bad-request", 422: "invalid-request"}


@on_one_engine
@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_no_item_is_refused(client: httpx.Client, body: str) -> None:
    sent, status = BODIES[body]
    problem = assert_problem(client.post("/items/", content=sent, headers=JSON), status, BY_STATUS[status])
    assert all(fault["field"].startswith("body") for fault in problem["errors"])
    item_id = new_item(client)
    assert client.patch(f"/items/{item_id}", content=sent, headers=JSON).status_code == status
    assert client.post("/orders/", content=sent, headers=JSON).status_code == status


@on_one_engine
@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/xml", "multipart/form-data; boundary=x", "\xff", "json", None],
)
def test_a_body_that_does_not_call_itself_json_is_refused(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = [] if content_type is None else [(b"Content-Type", content_type.encode("latin-1"))]
    answer = client.post("/items/", content=ITEM, headers=headers)
    (fault,) = assert_problem(answer, 415, "unsupported-media-type")["errors"]
    assert fault["field"] == "header.content-type"


@on_one_engine
@pytest.mark.parametrize(
    "content_type", ["Application/JSON", "application/json; charset=utf-8", "application/merge-patch+json"]
)
def test_json_may_be_called_by_each_of_its_names(client: httpx.Client, content_type: str) -> None:
    answer = client.post("/items/", content=ITEM, headers={"Content-Type": content_type})
    assert answer.status_code == 201


@on_one_engine
def test_what_is_wrong_is_named_and_not_repeated(client: httpx.Client) -> None:
    answer = client.post("/items/", json={"name": "a secret\x00", "price": "1", "colour": 1})
    problem = assert_problem(answer, 422, "invalid-request")
    assert [fault["field"] for fault in problem["errors"]] == ["body.name", "body.price", "body.colour"]
    assert all(fault["message"] for fault in problem["errors"])
    assert problem["detail"] == "Not valid: body.name, body.price, body.colour."
    assert "a secret" not in answer.text
    answer = client.post("/items/", content=b'{"name": ', headers=JSON)
    (fault,) = assert_problem(answer, 422, "invalid-request")["errors"]
    assert fault == {"field": "body", "message": "Not JSON: Expecting value (character 9)"}


@pytest.mark.parametrize(
    "row_id",
    [
        "0",
        "-1",
        "x",
        "1.0",
        "1.5",
        "1_0",
        "+1",
        "%00",
        "%FF",
        "\uff11",
        "a b",
        "9007199254740992",
        "9" * 5000,
    ],
    ids=lambda row_id: row_id[:20],
)
@on_one_engine
def test_an_id_is_a_positive_number_in_digits(client: httpx.Client, row_id: str) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/receipts")):
        answer = client.request(method, f"/items/{row_id}{path}", json={"quantity": 1} if path else {})
        assert_problem(answer, 422, "invalid-request")
    assert_problem(client.get(f"/orders/{row_id}"), 422, "invalid-request")
    assert_problem(client.post(f"/orders/{row_id}/cancel"), 422, "invalid-request")


@on_one_engine
@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("limit=1&limit=1", "limit", "Given more than once"),
        ("limit=1&limit=0", "limit", "Given more than once"),
        ("cursor=a&cursor=", "cursor", "Given more than once"),
        ("Limit=1", "Limit", "Unknown parameter"),
        ("limit=1&page=2", "page", "Unknown parameter"),
        ("=", "", "Unknown parameter"),
        ("%FF%00=1", "\ufffd\x00", "Unknown parameter"),
    ],
)
def test_a_parameter_is_known_and_comes_once(
    client: httpx.Client, query: str, field: str, message: str
) -> None:
    for path in ("/items/", "/orders/"):
        problem = assert_problem(client.get(f"{path}?{query}"), 422, "invalid-request")
        assert {"field": f"query.{field}", "message": message} in problem["errors"]


@on_one_engine
def test_a_parameter_where_there_are_none_is_refused(client: httpx.Client) -> None:
    item_id = new_item(client)
    for method, path in (("GET", f"/items/{item_id}"), ("DELETE", f"/items/{item_id}"), ("POST", "/items/")):
        body = {"name": "Mug", "price": 1} if method == "POST" else None
        answer = client.request(method, f"{path}?dry_run=1", json=body)
        (fault,) = assert_problem(answer, 422, "invalid-request")["errors"]
        assert fault["field"] == "query.dry_run"
    assert client.get(f"/items/{item_id}").status_code == 200
    assert client.get("/livez?at=1").status_code == 200


LIMIT = 1024 * 1024


@on_one_engine
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "GET"])
def test_a_body_that_is_too_large_is_refused(service: Service, client: httpx.Client, method: str) -> None:
    path = "/items/" if method == "POST" else f"/items/{new_item(client)}"
    answer = client.request(method, path, content=b"x" * (LIMIT + 1), headers=JSON)
    problem = assert_problem(answer, 413, "content-too-large")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["instance"] == path
    assert service.line_of(answer)["status"] == 413
    if method != "POST":
        assert client.get(path).status_code == 200


@on_one_engine
def test_a_body_whose_length_was_not_announced_is_counted(client: httpx.Client) -> None:
    half = [b'{"price": 1, "name": "', b"x" * LIMIT, b'"}']
    assert_problem(client.post("/items/", content=iter(half), headers=JSON), 413, "content-too-large")
    answer = client.post("/items/", content=iter([ITEM[:9], ITEM[9:]]), headers=JSON)
    assert answer.status_code == 201


@on_one_engine
def test_a_body_of_just_the_limit_is_read(client: httpx.Client) -> None:
    answer = client.post("/items/", content=ITEM + b" " * (LIMIT - len(ITEM)), headers=JSON)
    assert answer.status_code == 201


@on_one_engine
@pytest.mark.parametrize(
    "path", ["/", "/nope", "/items/1/nope", "/items/%2F", "//items/", "/%0anope", "/%3Fa"]
)
def test_an_unknown_path_is_not_found(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "TRACE"):
        problem = assert_problem(client.request(method, f"{client.base_url}{path}"), 404, "not-found")
        assert problem["instance"].startswith("/")
    assert client.head(f"{client.base_url}{path}").status_code == 404


@on_one_engine
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/items/", {"GET", "HEAD", "POST"}),
        ("/items/1", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("/items/x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("/problems/out-of-stock", {"GET", "HEAD"}),
        ("/orders/1/cancel", {"POST"}),
        ("/livez", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
        ("/docs", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_a_path_does_not_have_is_refused(
    client: httpx.Client, path: str, allowed: set[str]
) -> None:
    for method in ("OPTIONS", "PUT", "TRACE"):
        answer = client.request(method, path)
        assert_problem(answer, 405, "method-not-allowed")
        assert set(answer.headers["allow"].split(", ")) == allowed
    if "HEAD" not in allowed:
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (405, b"")


@on_one_engine
def test_a_slash_too_many_or_too_few_leads_to_the_path(client: httpx.Client) -> None:
    item_id = new_item(client)
    for path, right in (("/items", "/items/"), (f"/items/{item_id}/", f"/items/{item_id}")):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, right)
    answer = client.post("/items", json={"name": "Mug", "price": 1}, follow_redirects=True)
    assert answer.status_code == 201


@on_one_engine
@pytest.mark.parametrize("host", ["[", "]", "[::1", "a/b?c#d", "", "a b", "\xe9", "x:99999"])
def test_the_host_that_a_client_names_changes_no_answer(client: httpx.Client, host: str) -> None:
    headers = [(b"Host", host.encode("latin-1"))]
    answer = client.get("/items/x", headers=headers)
    assert assert_problem(answer, 422, "invalid-request")["instance"] == "/items/x"
    answer = client.get("/nope", headers=headers)
    assert assert_problem(answer, 404, "not-found")["instance"] == "/nope"


def test_every_answer_names_its_request(client: httpx.Client) -> None:
    item_id = new_item(client)
    for answer in (
        client.get("/livez"),
        client.get("/nope"),
        client.get("/items/x"),
        new_order(client, (item_id, 1)),
        client.delete(f"/items/{item_id}"),
    ):
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400:
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
            assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_fault_of_the_service_tells_the_client_where_to_ask(tmp_path: Path) -> None:
    async with in_process(database={"url": SqliteBackend(tmp_path).database_url}) as (app, client):

        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("a secret")

        answer = await client.get("/broken", headers={"X-Request-ID": "abc-1"})
    problem = assert_problem(answer, 500, "internal-error")
    assert (problem["instance"], problem["request_id"]) == ("/broken", "abc-1")
    assert answer.headers.get_list("x-request-id") == ["abc-1"]
    assert "secret" not in answer.text


async def test_a_busy_database_is_answered_with_when_to_come_again(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    async with in_process(database={"url": backend.database_url, "pool_timeout": 0.2}) as (_, client):
        other = backend.connect()
        other.execute("BEGIN IMMEDIATE")
        answer = await client.post("/items/", json={"name": "Mug", "price": 1})
        other.execute("ROLLBACK")
        other.close()
        assert answer.status_code == 503
        # This document is the middleware's own, and not one of the service.
        problem = assert_problem(answer, 503, answer.json()["type"].removeprefix("/problems/"))
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.post("/items/", json={"name": "Mug", "price": 1})).status_code == 201
    assert backend.count("items") == 1


# What the documentation says of them


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def problems_of(operation: Mapping[str, Any]) -> dict[str, int]:
    """The names of the documented problems, with their statuses."""
    found = {}
    for status, response in operation["responses"].items():
        if status.startswith(("2", "3", "500", "503")):
            continue
        content = response["content"]["application/problem+json"]
        for name, example in content.get("examples", {}).items():
            assert example["value"]["type"] == f"/problems/{name}"
            assert example["value"]["status"] == int(status)
            found[name] = int(status)
    return found


def test_every_refusal_of_the_service_is_documented(document: dict[str, Any]) -> None:
    refusals = [cls.problem for cls in DomainError.__subclasses__()]
    names = [problem.name for problem in refusals]
    assert len(set(names)) == len(names)
    assert len(names) >= 16
    found = {
        name: status for each in operations(document).values() for name, status in problems_of(each).items()
    }
    general = {"invalid-request": 422, "bad-request": 400, "content-too-large": 413, "headers-too-large": 431}
    # Not ready: by one route alone. The others: where keys are asked for (test_security_guard.py).
    elsewhere = {"not-ready", "key-required", "scope-missing"}
    assert found == {p.name: p.status for p in refusals if p.name not in elsewhere} | general


def test_every_operation_is_documented(document: dict[str, Any]) -> None:
    documented = operations(document)
    assert set(documented) == {
        "POST /items/",
        "GET /items/",
        "GET /items/{item_id}",
        "PATCH /items/{item_id}",
        "DELETE /items/{item_id}",
        "POST /items/{item_id}/receipts",
        "POST /orders/",
        "GET /orders/",
        "GET /orders/{order_id}",
        "POST /orders/{order_id}/cancel",
        "GET /livez",
        "GET /readyz",
        "GET /items/{item_id}/receipts/{receipt_id}",
        "GET /problems/{name}",
    }
    for operation in documented.values():
        assert operation["summary"]
        assert operation["tags"]
        assert {"413", "500", "503"} <= operation["responses"].keys()
        assert "Retry-After" in operation["responses"]["503"]["headers"]
    assert problems_of(documented["POST /orders/"]) == {
        "idempotency-key-in-use": 409,
        "idempotency-key-invalid": 400,
        "idempotency-key-required": 400,
        "idempotency-key-reused": 422,
        "unknown-items": 422,
        "invalid-request": 422,
        "out-of-stock": 409,
        "bad-request": 400,
        "content-too-large": 413,
        "headers-too-large": 431,
        "unsupported-media-type": 415,
    }
    not_ready = documented["GET /readyz"]["responses"]["503"]["content"]["application/problem+json"]
    assert list(not_ready["examples"]) == ["not-ready"]


def test_the_documentation_is_served(service: Service, client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "Inventory"
    assert service.alive
