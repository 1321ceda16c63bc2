"""What a client reads over a connection is true, and nobody holds one for nothing."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest
from uvicorn.protocols.http import flow_control, httptools_impl

from tests.api.garbage import CHUNKED, GIBBERISH, request
from tests.api.guarded import GuardedService, Keys
from tests.api.service import Service, new_item, new_order, on_one_engine, stock_of
from tests.support.backends import SqliteBackend
from tests.support.client import RawAnswer, RawClient
from tests.support.wait import wait_until

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LONG = b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n"
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAA")
NUMBERS = count(1)


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in STATUS.findall(said)]


def told(service: Service, *parts: bytes) -> bytes:
    """All that comes back until the server ends the connection; the parts are read one by one, as a rule."""
    with RawClient(service.port) as client:
        for part in parts:
            client.send(part)
            client.arrived(within=0.001)
        return client.read_until_closed()


def item(name: str) -> bytes:
    return b'{"name": "%s", "price": 1}' % name.encode()


def posted(body: bytes, *fields: bytes, path: bytes = b"/items/") -> bytes:
    fields = (b"Content-Type: application/json", *fields)
    return request(b"POST " + path, *fields, b"Content-Length: %d" % len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def new_name() -> str:
    return f"Mug of the protocol {next(NUMBERS)}"


def stored(service: Service, name: str) -> int:
    return len(service.backend.query("SELECT id FROM items WHERE name = ?", [name]))


def problem_of(answer: RawAnswer | None, status: int, name: str) -> RawAnswer:
    """A document of this kind, with the name of its request, and no word for other readers."""
    assert answer is not None
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (answer.headers["connection"], answer.headers["cache-control"]) == ("close", "no-store")
    document = answer.json()
    assert (document["type"], document["status"]) == (f"/problems/{name}", status)
    assert document["request_id"] == answer.headers["x-request-id"]
    return answer


# A request that is whole


BEHIND = {"gibberish": GIBBERISH, "half of it": b"\x01", "a head that is too large": LONG}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_a_write_is_answered_truly_whatever_comes_behind_it(service: Service, behind: bytes) -> None:
    name = new_name()
    said = told(service, posted(item(name)) + behind)
    assert (statuses(said), stored(service, name)) == ([201], 1)
    assert b"connection: close" in said
    item_id = new_item(service.client())
    said = told(service, request(b"DELETE /items/%d" % item_id) + behind)
    assert statuses(said) == [204]
    assert service.client().get(f"/items/{item_id}").status_code == 404


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_all_that_was_asked_before_the_garbage_is_answered(service: Service, behind: bytes) -> None:
    names = [new_name() for _ in range(3)]
    said = told(service, b"".join(posted(item(name)) for name in names) + behind)
    assert statuses(said) == [201, 201, 201]
    assert [stored(service, name) for name in names] == [1, 1, 1]


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
@pytest.mark.parametrize("behind", [*BEHIND.values(), b"GET /li"], ids=[*BEHIND.keys(), "half a head"])
def test_garbage_that_comes_while_a_write_waits_says_nothing(own_service: Service, behind: bytes) -> None:
    own_service.env["UOW_SERVER__KEEP_ALIVE_TIMEOUT"] = "1"
    own_service.start()
    assert isinstance(own_service.backend, SqliteBackend)
    with contextlib.closing(own_service.backend.connect()) as lock, RawClient(own_service.port) as client:
        lock.execute("BEGIN IMMEDIATE")
        client.send(posted(item("Mug")))
        assert not client.arrived(within=0.2)
        client.send(behind)
        # Longer than a connection may be idle, by the server's own clock.
        assert told(own_service) == b""
        assert not client.arrived()
        lock.execute("COMMIT")
        assert statuses(client.read_until_closed()) == [201]
    assert own_service.backend.count("items") == 1


# A body that is broken


BROKEN = {
    "no size": b"zz\r\n{}\r\n0\r\n\r\n",
    "a half that is good": chunk(b"{") + b"zz\r\n",
    "an extension without end": b"5;" + b"e" * 40_000,
    "a longer chunk": b"1\r\n{}}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("pieces", [1, 2])
def test_nothing_is_kept_of_a_request_whose_body_breaks(service: Service, body: bytes, pieces: int) -> None:
    name = new_name()
    head = request(b"POST /items/", b"Content-Type: application/json", CHUNKED)
    good = chunk(item(name))
    sent = (head + good + body,) if pieces == 1 else (head + good, body)
    with RawClient(service.port) as client:
        for part in sent:
            assert not client.arrived(within=0.05)
            client.send(part)
        # One in a single piece counts as too large from the next piece on.
        for _ in range(100):
            if client.arrived(within=0.05):
                break
            with contextlib.suppress(ConnectionError):
                client.send(b"e" * 40_000)
        said = client.read_until_closed()
    assert (statuses(said), stored(service, name)) == ([400], 0)
    assert b"/problems/bad-request" in said


@pytest.mark.parametrize("body", [b"zz\r\n", chunk(b"{}") + b"zz\r\n"])
def test_who_reads_no_body_is_answered_truly_though_it_breaks(service: Service, body: bytes) -> None:
    client = service.client()
    item_id = new_item(client, stock=5)
    order = new_order(client, (item_id, 2)).json()
    said = told(service, request(b"POST /orders/%d/cancel" % order["id"], CHUNKED) + body)
    assert statuses(said) == [200]
    assert client.get(f"/orders/{order['id']}").json()["status"] == "cancelled"
    assert stock_of(client, item_id) == 5


@on_one_engine
def test_a_request_has_one_answer_though_its_body_breaks_after_it(service: Service) -> None:
    with RawClient(service.port) as client:
        client.send(request(b"POST /livez", CHUNKED))
        answer = client.answer()
        assert answer is not None
        assert answer.status == 405
        client.send(b"zz\r\n")
        assert client.read_until_closed() == b""


# Upgrades: this server knows none, and a client may offer what it likes (RFC 9110, section 7.8)


@pytest.mark.parametrize("fields", [H2C, (b"Connection: keep-alive, upgrade", b"Upgrade: anything")])
@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_an_offer_to_upgrade_is_passed_over(service: Service, fields: tuple[bytes, ...], size: int) -> None:
    """As clients make it that could speak HTTP/2: with each request, those with a body included."""
    names = [new_name(), new_name()]
    chunked = request(b"POST /items/", b"Content-Type: application/json", *fields, CHUNKED)
    data = b"".join(
        (
            posted(item(names[0]), *fields),
            request(b"GET /livez", *fields),
            chunked + chunk(item(names[1])) + b"0\r\n\r\n",
            request(b"GET /livez", b"Connection: close"),
        )
    )
    said = told(service, *(data[start : start + size] for start in range(0, len(data), size)))
    assert statuses(said) == [201, 200, 201, 200]
    assert [stored(service, name) for name in names] == [1, 1]


@on_one_engine
@pytest.mark.parametrize("connection", [b"Connection: Upgrade", b"Connection: close, Upgrade"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [1, 2])
def test_no_request_hides_in_the_body_of_an_upgrade(
    service: Service, client: httpx.Client, connection: bytes, chunked: bool, pieces: int
) -> None:
    item_id = new_item(client)
    hidden = request(b"DELETE /items/%d" % item_id, b"Connection: close")
    framing = CHUNKED if chunked else b"Content-Length: %d" % len(hidden)
    head = request(b"POST /items/", b"Content-Type: application/json", connection, b"Upgrade: h2c", framing)
    body = chunk(hidden) + b"0\r\n\r\n" if chunked else hidden
    last = request(b"GET /livez", b"Connection: close")
    said = told(service, *((head + body + last,) if pieces == 1 else (head, body + last)))
    assert statuses(said) == ([422] if b"close" in connection else [422, 200])
    assert client.get(f"/items/{item_id}").status_code == 200


@on_one_engine
def test_nothing_hides_behind_CONNECT(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client)
    hidden = request(b"DELETE /items/%d" % item_id)
    with RawClient(service.port) as raw:
        raw.send(request(b"CONNECT a:1") + hidden)
        problem_of(raw.answer(), 400, "bad-request")
        assert raw.read() == b""
    assert client.get(f"/items/{item_id}").status_code == 200


# Trailers (RFC 9110, section 6.5.1)


def with_trailer(trailer: bytes, *fields: bytes) -> bytes:
    head = request(b"POST /items/", b"Content-Type: application/json", CHUNKED, *fields)
    return head + chunk(item("Mug")) + b"0\r\n" + trailer + b"\r\n\r\n"


def test_a_trailer_opens_nothing(guarded: GuardedService, keys: Keys) -> None:
    key = b"Authorization: Bearer " + keys.both.key.encode()
    end = request(b"GET /items/", b"Connection: close")
    assert statuses(told(guarded, with_trailer(key) + end)) == [401, 401]
    assert statuses(told(guarded, with_trailer(b"X: y", key) + end)) == [201, 401]


@on_one_engine
def test_a_trailer_is_no_header(service: Service) -> None:
    end = request(b"GET /livez", b"Connection: close")
    said = told(service, with_trailer(b"X-Request-ID: behind\r\nX-Request-ID: behind-it") + end)
    assert statuses(said) == [201, 200]
    assert b"behind" not in said


@on_one_engine
def test_trailers_count_as_headers_do(service: Service) -> None:
    trailers = b"\r\n".join(b"X-%d: %s" % (number, b"x" * 1000) for number in range(40))
    said = told(service, with_trailer(trailers))
    assert statuses(said) == [400]


# The time that a head may take


WAITING = {
    "nothing": b"",
    "line ends": b"\r\n",
    "half a line": b"GET /it",
    "half a head": request(b"GET /livez")[:-2],
    "half a second head": request(b"GET /livez") + b"GET /li",
    "line ends behind a request": request(b"GET /livez") + b"\r\n",
    "an answered request without its body": request(b"POST /livez", b"Content-Length: 1000000"),
}


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
def test_who_asks_for_nothing_is_not_waited_for(own_service: Service) -> None:
    own_service.env["UOW_SERVER__KEEP_ALIVE_TIMEOUT"] = "1"
    own_service.start()
    with ThreadPoolExecutor(len(WAITING)) as pool:
        said = pool.map(lambda data: statuses(told(own_service, data)), WAITING.values())
        found = dict(zip(WAITING, said, strict=True))
    assert found == {
        **{name: [] for name in WAITING},
        "half a second head": [200],
        "line ends behind a request": [200],
        "an answered request without its body": [405],
    }


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("first", "drop"), [(b"", b"x"), (request(b"GET /livez"), b"\r\n")])
def test_drops_are_not_waited_for(own_service: Service, first: bytes, drop: bytes) -> None:
    own_service.env["UOW_SERVER__KEEP_ALIVE_TIMEOUT"] = "1"
    own_service.start()
    with RawClient(own_service.port) as client:
        client.send(first)
        assert not first or client.answer() is not None
        client.send(drop if first else b"GET /livez HTTP/1.1\r\nX")
        drops = 0
        while not client.arrived(within=0.1) and drops < 200:
            with contextlib.suppress(ConnectionError):
                client.send(drop)
            drops += 1
        assert client.read_until_closed() == b""
    assert drops < 200


# Connections


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
def test_one_connection_too_many_is_503_until_there_is_room(own_service: Service) -> None:
    own_service.env["UOW_SERVER__MAX_CONNECTIONS"] = "2"
    own_service.start()
    with RawClient(own_service.port) as first, RawClient(own_service.port) as second:
        for client in (first, second):
            client.send(request(b"GET /livez"))
            assert client.answer() is not None
        with RawClient(own_service.port) as third:
            refusal = problem_of(third.answer(), 503, "too-many-connections")
            assert refusal.headers["retry-after"] == "1"
            assert third.read() == b""
        first.send(request(b"GET /livez"))
        assert first.answer() is not None
        second.close()
        end = request(b"GET /livez", b"Connection: close")
        wait_until(lambda: statuses(told(own_service, end)) == [200], "there is room")


# What the server says itself


@on_one_engine
def test_what_is_no_http_is_told_so_in_a_document(service: Service) -> None:
    with RawClient(service.port) as client:
        client.send(GIBBERISH)
        answer = problem_of(client.answer(), 400, "bad-request")
        assert client.read() == b""
    assert answer.json()["detail"].startswith("This is no HTTP/1.1: ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    request_id = answer.headers["x-request-id"]
    (line,) = [line for line in service.lines() if line.get("request_id") == request_id]
    assert (line["level"], line["status"], line["problem"]) == ("warning", 400, "bad-request")
    assert service.client().get(answer.json()["type"]).status_code == 200


def test_the_server_is_the_one_that_is_built_upon() -> None:
    """`api/protocol.py` overrides uvicorn's own classes, parts of which are not public.

    If this fails, uvicorn has changed them: read what is new, whether each override still does what it
    says, and then write the new value here.
    """
    parts = (
        httptools_impl.HttpToolsProtocol,
        httptools_impl.RequestResponseCycle,
        flow_control.FlowControl,
    )
    source = "".join(inspect.getsource(part) for part in parts)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "1f0ad26f71ba02a7"
