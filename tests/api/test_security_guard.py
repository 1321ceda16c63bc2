"""The guard leaves no way around it: no route, no path, no method, no second header."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.routes import routes_of
from api.settings import Settings
from tests.api.guarded import GuardedService, Keys, made
from tests.api.service import assert_problem, in_process, on_one_engine
from tests.support.asgi import AsgiCall
from uow import UnitOfWorkMiddleware

PROBES_AND_PROBLEMS = {"GET /livez", "GET /readyz", "GET /problems/{name}"}
DOCUMENTATION = {
    "GET /docs",
    "GET /docs/assets/{version}/{name}",
    "GET /docs/start.js",
    "GET /openapi.json",
}

ITEM = {"name": "Mug", "price": 1}


@pytest.fixture
async def app(keys: Keys) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with in_process(database={"url": "sqlite://"}, security=keys.section()) as found:
        yield found


# No route is left out


@pytest.mark.parametrize("public_docs", [True, False])
async def test_each_route_is_guarded_or_on_the_list(keys: Keys, public_docs: bool) -> None:
    section = keys.section(public_docs=public_docs)
    async with in_process(database={"url": "sqlite://"}, security=section) as (app, client):
        found = set()
        for route in routes_of(app):
            path = re.sub(r"\{\w+\}", "1", route.path)
            for method in (route.method, "HEAD", "OPTIONS"):
                if (await client.request(method, path)).status_code != 401:
                    found.add(f"{route.method} {route.path}")
        assert found == PROBES_AND_PROBLEMS | (DOCUMENTATION if public_docs else set())
        assert len(routes_of(app)) > len(found) + 10


async def test_a_route_that_is_added_is_guarded_before_anybody_thinks_of_it(
    app: tuple[FastAPI, httpx.AsyncClient],
) -> None:
    service, client = app

    @service.get("/livez/more")
    async def more() -> str:
        return "secret"

    service.mount("/mounted", FastAPI())
    for path in ("/livez/more", "/mounted/openapi.json", "/mounted", "/nothing"):
        assert_problem(await client.get(path), 401, "key-required")


async def test_a_refusal_opens_no_unit(
    app: tuple[FastAPI, httpx.AsyncClient], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    async def reach(self: object, scope: dict[str, Any], receive: object, send: object) -> None:
        reached.append(scope["path"])

    service, client = app
    monkeypatch.setattr(UnitOfWorkMiddleware, "__call__", reach)
    assert (await client.get("/items/")).status_code == 401
    assert (await client.post("/items/", json=ITEM, headers=keys.reader.header)).status_code == 403
    assert (await client.options("/items/")).status_code == 401
    assert reached == []
    await AsgiCall(service, "GET", "/livez").run()
    assert reached == ["/livez"]


async def test_a_web_socket_needs_a_key_too(app: tuple[FastAPI, httpx.AsyncClient]) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/items/", "headers": [], "query_string": b""}
    await app[0](scope, receive, send)
    (message,) = sent
    assert (message["type"], message["code"]) == ("websocket.close", 1008)


# The request line and the headers


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_no_method_goes_without_a_key(guarded: GuardedService, method: str) -> None:
    with guarded.raw() as connection:
        answer = connection.request(method, "/items/").answer()
    assert answer is not None
    assert answer.status in {400, 401, 405}
    assert b"items" not in answer.body.replace(b"/items/", b"")


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        (["Authorization : Bearer {key}"], {400, 401}),
        (["Authorization:", " Bearer {key}"], {400, 401}),
        (["Authorization: Bearer", "\t{key}"], {400, 401}),
        (["X: y\nAuthorization: Bearer {key}"], {400, 401}),
        (["X: y\rAuthorization: Bearer {key}"], {400, 401}),
        (["Authorization\0: Bearer {key}"], {400, 401}),
        (["Authorization: Bearer {key}\0"], {400, 401}),
        (["Authorization: Bearer "], {401}),
        (["Authorization:"], {401}),
        (["Connection: Authorization", "Authorization: Bearer {bad}"], {401}),
        (["authorization: Bearer {key}", "AUTHORIZATION: Bearer {bad}"], {401}),
    ],
)
def test_a_header_that_two_readers_would_read_differently_is_refused(
    guarded: GuardedService, keys: Keys, lines: list[str], statuses: set[int]
) -> None:
    bad = made("stranger", "read").key
    head = "\r\n".join(["GET /items/ HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *lines, "", ""])
    with guarded.raw() as connection:
        connection.send(head.replace("{key}", keys.both.key).replace("{bad}", bad).encode())
        answer = connection.answer()
    assert answer is not None
    assert answer.status in statuses


def test_a_header_of_a_megabyte_is_refused_and_the_service_goes_on(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys
) -> None:
    with guarded.raw() as connection:
        connection.request("GET", "/items/", headers={"Authorization": "Bearer " + "0" * 1_000_000})
        answer = connection.answer()
    assert answer is not None
    assert answer.status in {400, 401, 431}
    assert keyless.get("/items/", headers=keys.reader.header).status_code == 200


# Paths


TRICKS = [
    "/items",
    "/items/",
    "//items/",
    "/ITEMS/",
    "/./items/",
    "/%2e/items/",
    "/%69tems/",
    "/items%2f",
    "/items/?/livez",
    "/items/#/livez",
    "/items/;/livez",
    "/items/%00/livez",
    "//livez",
    "/livez/",
    "/LIVEZ",
    "/livez%2f",
    "/livez%00",
    "/livez%0a",
    "/livez;/items/",
    "/livez/../items/",
    "/livez/..%2fitems/",
    "/livez/%2e%2e/items/",
    "/problems/",
    "/problems//items/",
    "/problems/../items/",
    "/problems/%2e%2e/items/",
    "/problems/..%2fitems%2f",
    "/problems/x/../../items/",
    "/docs/",
    "/docs/../items/",
    "/docs/assets/../../items/",
    "/docs/assets/..%2f..%2fitems/",
    "/docs/oauth2-redirect",
    "/redoc",
    "/openapi.json/../items/",
    "\\items\\",
    "*",
    "http://127.0.0.1/items/",
    "http://127.0.0.1/livez/../items/",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_way_to_write_a_path_leads_around_the_guard(guarded: GuardedService, path: str) -> None:
    with guarded.raw() as connection:
        answer = connection.request("GET", path).answer()
    assert answer is not None
    assert answer.status in {400, 401}
    assert b"next_cursor" not in answer.body


@pytest.mark.parametrize("name", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Uri"])
def test_a_path_is_what_the_request_line_says(keyless: httpx.Client, name: str) -> None:
    assert keyless.get("/livez", headers={name: "/items/"}).json() == {"status": "alive"}
    assert keyless.get("/items/", headers={name: "/livez"}).status_code == 401


# What is documented


def described(section: dict[str, Any]) -> dict[str, Any]:
    return create_app(Settings.model_validate({"security": section})).openapi()


def test_openapi_says_what_needs_a_key(keys: Keys) -> None:
    document = described(keys.section())
    (scheme,) = document["components"]["securitySchemes"].items()
    assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
    for path, methods in document["paths"].items():
        is_open = f"GET {path}" in PROBES_AND_PROBLEMS
        for operation in methods.values():
            assert ("security" not in operation) is is_open
            assert ({"401", "403"} <= operation["responses"].keys()) is not is_open
    examples = document["paths"]["/items/"]["post"]["responses"]["403"]["content"]["application/problem+json"]
    assert "scope-missing" in examples["examples"]


def test_openapi_says_nothing_of_keys_where_there_are_none() -> None:
    document = described({})
    assert "securitySchemes" not in document["components"]
    assert not any("security" in each for methods in document["paths"].values() for each in methods.values())


@on_one_engine
def test_without_keys_the_service_is_open(client: httpx.Client) -> None:
    assert client.get("/items/", headers=made("stranger", "read").header).status_code == 200
