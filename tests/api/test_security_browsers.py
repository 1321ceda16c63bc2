"""What a browser can be made to do: by a Host that is not ours, by foreign pages, by what answers allow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.settings import Settings
from tests.api.guarded import OURS, GuardedService, Keys
from tests.api.service import Service, assert_problem, in_process, new_item, on_one_engine

# Hosts: the guarded service answers to 127.0.0.1, www.own.example and *.example.org


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "shop.example.org", "A.B.Example.ORG:443"])
def test_a_host_of_ours_is_answered(keyless: httpx.Client, host: str) -> None:
    assert keyless.get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "example.org",
        "evilexample.org",
        "shop.example.org.evil.example",
        "127.0.0.1.evil.example",
        "own.example",
        "127.0.0.1@evil.example",
        "evil.example#.example.org",
        "evil.example/.example.org",
        "localhost",
        "127.0.0.1:x",
        "127.0.0.1:",
        "[::1]",
        "127.0.0.1, evil.example",
        "\xe9.example.org",
    ],
)
def test_a_host_that_is_not_ours_is_told_nothing(
    guarded: GuardedService, keyless: httpx.Client, host: str
) -> None:
    """A page that has its own name lead to this address (DNS rebinding) sends its own name."""
    for path in ("/livez", "/items/", "/problems/out-of-stock", "/docs"):
        answer = keyless.get(path, headers=[(b"Host", host.encode("latin-1")), (b"Origin", OURS.encode())])
        if host == "127.0.0.1:" and answer.status_code != 400:
            assert answer.status_code in {200, 401}  # an empty port is the default one (RFC 3986, 3.2.3)
            continue
        assert_problem(answer, 400, "untrusted-host")
        assert "access-control-allow-origin" not in answer.headers
        assert host not in answer.text
        assert guarded.line_of(answer)["statements"] == 0


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        (["Host: 127.0.0.1", "Host: evil.example"], {200, 400}),
        (["Host: evil.example", "Host: 127.0.0.1"], {400}),
        ([], {400}),
        (["Host:"], {400}),
        (["X-Forwarded-Host: 127.0.0.1", "Host: evil.example"], {400}),
        (["Forwarded: host=127.0.0.1", "Host: evil.example"], {400}),
    ],
)
def test_one_host_decides_and_it_is_that_of_the_request(
    guarded: GuardedService, lines: list[str], statuses: set[int]
) -> None:
    head = "\r\n".join(["GET /livez HTTP/1.1", "Connection: close", *lines, "", ""])
    with guarded.raw() as connection:
        connection.send(head.encode())
        answer = connection.answer()
    assert answer is not None
    assert answer.status in statuses
    assert b"evil" not in answer.body


@on_one_engine
def test_no_answer_sends_a_client_to_a_host_that_it_has_named(client: httpx.Client) -> None:
    """Where any Host is answered; the framework's own redirects repeat it."""
    for path in ("/items", f"/items/{new_item(client)}/"):
        answer = client.get(path, headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"})
        assert answer.status_code == 307
        assert answer.headers["location"].startswith("/items")
        assert "evil" not in str(answer.headers) + answer.text
    made = client.post("/items/", json={"name": "Mug", "price": 1}, headers={"Host": "evil.example"})
    assert made.headers["location"].startswith("/items/")


# Origins: the pages of one site may call the guarded service


FOREIGN = [
    "https://evil.example",
    "http://shop.example.com",
    "https://shop.example.com.evil.example",
    "https://shop.example.com:8443",
    "https://evilshop.example.com",
    "https://SHOP.example.com",
    "https://shop.example.com/",
    "null",
    "*",
    "",
]


def preflight(client: httpx.Client, origin: str, method: str = "PATCH", headers: str = "") -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return client.options("/items/1", headers=asked | {"Access-Control-Request-Headers": headers})


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_origin_may_send_nothing_and_read_nothing(
    keyless: httpx.Client, keys: Keys, origin: str
) -> None:
    answer = preflight(keyless, origin)
    assert_problem(answer, 400, "preflight-refused")
    assert "access-control-allow-origin" not in answer.headers
    answer = keyless.get("/items/", headers={"Origin": origin, **keys.reader.header})
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]


def test_a_page_of_ours_may_send_what_the_routes_read_and_read_what_they_tell(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys
) -> None:
    wanted = "authorization,content-type,if-match,if-none-match,x-request-id"
    for method in ("GET", "POST", "PATCH", "DELETE"):
        answer = preflight(keyless, OURS, method, wanted)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, OURS)
        assert guarded.line_of(answer)["statements"] == 0
    body = {"name": "Mug", "price": 1}
    answer = keyless.post("/items/", json=body, headers={"Origin": OURS, **keys.both.header})
    assert answer.headers["access-control-allow-origin"] == OURS
    exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
    assert {"etag", "location", "x-request-id"} <= exposed & {name.lower() for name in answer.headers}
    assert {"link", "retry-after", "www-authenticate", "allow"} <= exposed


def test_a_page_of_ours_may_read_why_it_was_refused(keyless: httpx.Client, keys: Keys) -> None:
    for path, headers, status in (
        ("/items/", {}, 401),
        ("/items/", keys.writer.header, 403),
        ("/nope", keys.reader.header, 404),
        ("/items/x", keys.reader.header, 422),
    ):
        answer = keyless.get(path, headers={"Origin": OURS, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, OURS)
    answer = keyless.post("/items/", content=b"x" * 2_000_000, headers={"Origin": OURS, **keys.both.header})
    assert_problem(answer, 413, "content-too-large")
    assert answer.headers["access-control-allow-origin"] == OURS


@pytest.mark.parametrize(("method", "headers"), [("PUT", ""), ("get", ""), ("GET", "x-evil"), ("TRACE", "")])
def test_a_page_of_ours_may_send_nothing_that_no_route_reads(
    keyless: httpx.Client, method: str, headers: str
) -> None:
    assert_problem(preflight(keyless, OURS, method, headers), 400, "preflight-refused")


@pytest.mark.parametrize("origins", [OURS, "*"])
async def test_cookies_are_allowed_to_no_origin(origins: str) -> None:
    """So "any origin" lets a page do no more than anybody without a key; there is no setting for it."""
    section = {"cors_origins": origins}
    async with in_process(database={"url": "sqlite://"}, security=section) as (_, client):
        for answer in (
            await client.get("/livez", headers={"Origin": OURS, "Cookie": "a=b"}),
            await client.options("/", headers={"Origin": OURS, "Access-Control-Request-Method": "GET"}),
        ):
            assert answer.headers["access-control-allow-origin"] == origins
            assert "access-control-allow-credentials" not in answer.headers
    assert not any("credential" in key for key in type(Settings().security).model_fields)


@on_one_engine
def test_without_origins_no_page_may_read_anything(client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"Origin": OURS})
    assert not [name for name in answer.headers if name.startswith("access-control")]


# What answers tell browsers


def assert_safe(answer: httpx.Response) -> None:
    for name, value in {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }.items():
        assert answer.headers.get_list(name) == [value]
    (policy,) = answer.headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("frame-ancestors 'none'")
    assert "unsafe" not in policy
    assert len(answer.headers.get_list("cache-control")) == 1
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert not {"server", "x-powered-by", "via"} & {name.lower() for name in answer.headers}


def test_every_kind_of_answer_is_safe_to_show(keyless: httpx.Client, keys: Keys) -> None:
    both = keys.both.header
    body = {"name": "Mug", "price": 1}
    made = keyless.post("/items/", json=body, headers=both)
    item = made.headers["location"]
    script = "/docs/start.js"
    found = [
        made,
        keyless.get(item, headers={**both, "If-None-Match": made.headers["etag"]}),
        keyless.patch(item, json={"price": 2}, headers={**both, "If-Match": '"x"'}),
        keyless.get("/items/", headers=both),
        keyless.get("/items", headers=both),
        keyless.get("/items/"),
        keyless.get("/items/", headers=keys.writer.header),
        keyless.get("/nope", headers=both),
        keyless.put("/items/", headers=both),
        keyless.post("/items/", content=b"x" * 2_000_000, headers=both),
        keyless.post("/items/", content=b"x", headers=both),
        keyless.post("/items/", json={}, headers=both),
        keyless.delete(item, headers=both),
        *(keyless.get(path) for path in ("/livez", "/readyz", "/docs", script, "/openapi.json")),
        keyless.get("/problems/out-of-stock", headers={"Accept": "text/html"}),
        keyless.get("/livez", headers={"Host": "evil.example"}),
        preflight(keyless, OURS),
        preflight(keyless, "null"),
    ]
    statuses = {200, 201, 204, 304, 307, 400, 401, 403, 404, 405, 412, 413, 415, 422}
    assert {answer.status_code for answer in found} == statuses
    for answer in found:
        assert_safe(answer)


def test_no_shared_cache_keeps_what_a_key_was_shown(keyless: httpx.Client, keys: Keys) -> None:
    made = keyless.post("/items/", json={"name": "Mug", "price": 1}, headers=keys.both.header)
    shown = keyless.get(made.headers["location"], headers=keys.both.header)
    assert shown.headers["cache-control"] == made.headers["cache-control"] == "private, no-cache"
    for path, headers in (("/items/", keys.both.header), ("/items/", {}), ("/nope", keys.both.header)):
        assert keyless.get(path, headers=headers).headers["cache-control"] == "no-store"


def test_tls_is_insisted_on_over_tls_alone(keyless: httpx.Client) -> None:
    """Over plain HTTP anybody on the way could have said so (RFC 6797, section 7.2)."""
    assert "strict-transport-security" not in keyless.get("/livez").headers
    # The proxy on this machine is trusted by default.
    answer = keyless.get("/livez", headers={"X-Forwarded-Proto": "https"})
    assert answer.headers["strict-transport-security"] == "max-age=3600"


@on_one_engine
def test_tls_is_not_insisted_on_unless_it_is_configured(client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"X-Forwarded-Proto": "https"})
    assert "strict-transport-security" not in answer.headers


# A fault of the service


@pytest.fixture
async def broken(tmp_path: Path, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    """A service with a route that fails, and says a secret while it does."""
    section: dict[str, Any] = keys.section(cors_origins=OURS)
    async with in_process(database={"url": f"sqlite:///{tmp_path}/a.db"}, security=section) as (app, client):
        _break(app)
        yield client


def _break(app: FastAPI) -> None:
    @app.get("/broken")
    async def broken() -> None:
        secret = "hunter2"
        raise RuntimeError(f"the password is {secret}")


async def test_a_fault_tells_nothing_of_the_service(broken: httpx.AsyncClient, keys: Keys) -> None:
    answer = await broken.get("/broken", headers={"Origin": OURS, **keys.reader.header})
    document = assert_problem(answer, 500, "internal-error")
    assert document.keys() == {"type", "title", "status", "detail", "instance", "request_id"}
    assert document["request_id"] == answer.headers["x-request-id"]
    for word in ("hunter2", "RuntimeError", "Traceback", ".py", "broken()"):
        assert word not in answer.text
    assert answer.headers["access-control-allow-origin"] == OURS
    assert_safe(answer)


@on_one_engine
def test_no_answer_names_the_server(service: Service, client: httpx.Client) -> None:
    for path in ("/livez", "/nope", "/items/x"):
        answer = client.get(path)
        assert "server" not in answer.headers
        for word in ("uvicorn", "starlette", "fastapi", "python", "sqlite", "pydantic"):
            assert word not in (str(answer.headers) + answer.text).lower()
    assert service.alive
