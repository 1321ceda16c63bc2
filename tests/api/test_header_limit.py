"""The bound for a request line and its headers, over a socket: whole, in pieces, and without an end."""

from __future__ import annotations

import json

import pytest

from tests.api.service import Service, assert_problem, on_one_engine
from tests.support.client import RawClient

LIMIT = 32 * 1024
GET = "GET /livez HTTP/1.1"
CHUNKED = (
    b"POST /items/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def filled(size: int) -> str:
    return "x" * size


def assert_refused(client: RawClient) -> None:
    """431 as a problem document, and then the end of the connection."""
    answer = client.answer()
    assert answer is not None
    assert (answer.status, answer.headers["content-type"]) == (431, "application/problem+json")
    assert answer.headers["connection"] == "close"
    document = answer.json()
    assert (document["type"], document["status"]) == ("/problems/headers-too-large", 431)
    assert client.read() == b""


@on_one_engine
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/livez", {"X-Long": filled(LIMIT)}),
        ("/livez", {f"X-{number}": filled(1000) for number in range(40)}),
        (f"/livez?q={filled(LIMIT)}", {}),
        (f"/livez?q={filled(LIMIT // 2)}", {"X-Long": filled(LIMIT // 2)}),
    ],
    ids=["one header", "many headers", "path", "together"],
)
def test_what_is_too_large_is_431(service: Service, path: str, headers: dict[str, str]) -> None:
    with RawClient(service.port) as client:
        assert_refused(client.request("GET", path, headers=headers))
    assert service.client().get("/livez").status_code == 200


@on_one_engine
def test_what_is_just_below_the_limit_is_served(service: Service) -> None:
    with RawClient(service.port) as client:
        answer = client.request("GET", "/livez", headers={"X-Long": filled(LIMIT - 200)}).answer()
    assert answer is not None
    assert answer.status == 200


@on_one_engine
@pytest.mark.parametrize("head", [f"{GET}\r\nX-Long: ", "GET /livez?q=", f"{GET}\r\nX"])
def test_what_never_ends_is_431_before_it_does(service: Service, head: str) -> None:
    """The parser keeps a header to itself until it is complete; without a bound it would keep all of it."""
    with RawClient(service.port) as client:
        client.send(head.encode())
        assert not client.arrived()
        client.send(filled(LIMIT).encode())
        assert_refused(client)


@on_one_engine
@pytest.mark.parametrize(
    "rest", ["5;extension=", "2\r\n{}\r\n0\r\nX-Trailer: "], ids=["extension of a chunk", "trailer"]
)
def test_what_never_ends_in_a_body_ends_the_connection(service: Service, rest: str) -> None:
    """Its request has begun, so no second answer goes out in the midst of the first."""
    with RawClient(service.port) as client:
        client.send(CHUNKED + rest.encode())
        # What comes in one piece with the end of the head counts from the next piece on.
        for _ in range(100):
            if client.arrived(within=0.05):
                break
            client.send(filled(LIMIT).encode())
        assert client.arrived()
        said = client.read_until_closed()
    assert b" 201 " not in said
    assert b" 431 " not in said


@on_one_engine
def test_each_request_of_a_connection_has_the_whole_limit(service: Service) -> None:
    head = f"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: {filled(LIMIT // 2)}\r\n"
    with RawClient(service.port) as client:
        client.send((f"{head}\r\n" * 4 + f"{head}Connection: close\r\n\r\n").encode())
        assert client.read_until_closed().count(b"HTTP/1.1 200 OK") == 5


@on_one_engine
def test_a_body_is_no_header(service: Service) -> None:
    body = json.dumps({"name": "Mug", "price": 1}).encode()
    with RawClient(service.port) as client:
        client.send(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        for _ in range(40):  # blank lines are JSON's white space
            client.send(b"400\r\n" + b"\n" * 0x400 + b"\r\n")
        client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        answer = client.answer()
    assert answer is not None
    assert answer.status == 201


@pytest.mark.parametrize("service_leg", ["sqlite"], indirect=True)
def test_the_limits_are_those_of_the_configuration(own_service: Service) -> None:
    own_service.env |= {"UOW_SERVER__MAX_HEADER_SIZE": "1KiB", "UOW_SERVER__MAX_BODY_SIZE": "1KiB"}
    own_service.start()
    with RawClient(own_service.port) as client:
        assert_refused(client.request("GET", "/livez", headers={"X-Long": filled(1024)}))
    http = own_service.client()
    answer = http.post("/items/", json={"name": filled(1024), "price": 1})
    assert_problem(answer, 413, "content-too-large")
    assert http.post("/items/", json={"name": "Mug", "price": 1}).status_code == 201
