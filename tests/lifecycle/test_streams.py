"""Answers that stream: what the unit does meanwhile, and how a cut one looks to the client."""

import dataclasses

import pytest

from tests.lifecycle.model import ROWS
from tests.lifecycle.service import Service, problem
from tests.support.client import RawClient
from tests.support.hold import hold_commits

HOWS = ["cursor", "cursor of the handler", "execute", "one by one"]
A_MOMENT = 0.3  # seconds in which an answer that does not wait for COMMIT would be here many times over
LAST_CHUNK = b"0\r\n\r\n"
FIRST = b"first\n"


@pytest.fixture(scope="module")
def apps() -> list[str]:
    return ["plain", "impatient", "patient"]


@pytest.fixture
def impatient(service: Service) -> Service:
    """The same app, which gives a stream one second."""
    return dataclasses.replace(service, stack="impatient")


@pytest.fixture
def patient(service: Service) -> Service:
    """The same app, which gives a stream more time than the test takes on any machine."""
    return dataclasses.replace(service, stack="patient")


def rows(service: Service, name: str) -> list[str]:
    """Write what the stream is to read; the lines that it has then."""
    names = [f"{name}-{number}" for number in ROWS]
    service.add_items(*names)
    return [f"{each}\n" for each in names]


def begin(service: Service, method: str, case: str, name: str, **params: object) -> RawClient:
    """Send the request, and return when the stream has paused behind its first chunk."""
    sent = service.send(method, case, name=name, **params)
    service.wait_until_told(name, "paused")
    return sent


def is_cut(received: bytes, *, length: int = 0) -> None:
    """Assert that a client can tell that this is not the whole body."""
    head, end, body = received.partition(b"\r\n\r\n")
    assert end
    if length:
        assert f"content-length: {length}".encode() in head.lower()
        assert len(body) < length
    else:
        assert b"transfer-encoding: chunked" in head.lower()
        assert not body.endswith(LAST_CHUNK)


# L15


@pytest.mark.parametrize("how", HOWS)
def test_L15_a_unit_that_reads_stays_open_to_the_last_byte(service: Service, name: str, how: str) -> None:
    lines = rows(service, name)
    sent = begin(service, "GET", "stream", name, how=how)
    assert service.seen()["checked_out"] == 1
    assert service.seen(name)["told"] == ["paused"]
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert (answer.status, answer.body) == (200, "".join(lines).encode())
    assert service.told(name) == ["paused", "generator ended", "settled committed", "background"]


@pytest.mark.parametrize("how", HOWS)
def test_L15_the_chunks_go_out_as_they_are_made(service: Service, name: str, how: str) -> None:
    lines = rows(service, name)
    sent = begin(service, "GET", "stream", name, how=how)
    received = b""
    while not received.endswith(f"{lines[0]}\r\n".encode()):
        received += sent.read()
    assert not sent.arrived(within=A_MOMENT)
    service.release(name)
    assert sent.read_until_closed().endswith(LAST_CHUNK)


@pytest.mark.parametrize("how", HOWS)
def test_L15_a_body_that_no_buffer_holds_is_complete(service: Service, name: str, how: str) -> None:
    pad = 2_000_000
    lines = rows(service, name)
    sent = service.send("GET", "stream", name=name, how=how, pad=pad, length=(pad + 1) * len(lines))
    service.wait_until_told(name, "paused")
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert answer.body.decode().split() == "".join(lines).split()
    assert "settled committed" in service.told(name)


@pytest.mark.parametrize("how", HOWS)
def test_L15_an_error_status_streams_to_the_last_byte_too(service: Service, name: str, how: str) -> None:
    lines = rows(service, name)
    sent = begin(service, "GET", "stream", name, how=how, status=404)
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert (answer.status, answer.body) == (404, "".join(lines).encode())
    assert service.told(name)[:2] == ["paused", "generator ended"]


@pytest.mark.parametrize("how", HOWS)
def test_L15_a_client_that_leaves_in_the_middle_leaks_nothing(service: Service, name: str, how: str) -> None:
    rows(service, name)
    sent = begin(service, "GET", "stream", name, how=how)
    sent.reset()
    if service.mode == "sync":
        service.release(name)  # nobody can stop a thread
    service.wait_until_told(name, "settled ")
    service.is_at_rest()
    assert service.get("items", name="seed-1").json() == ["seed-1"]


@pytest.mark.parametrize("length", [0, 1000])
@pytest.mark.parametrize("end", ["raises", "writes"])
@pytest.mark.parametrize("how", HOWS)
def test_L15_and_L27_a_stream_that_fails_in_the_middle_is_cut(
    service: Service, name: str, how: str, end: str, length: int
) -> None:
    lines = rows(service, name)
    sent = begin(service, "GET", "stream", name, how=how, end=end, length=length)
    service.release(name)
    received = sent.read_until_closed()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert lines[0].encode() in received
    assert lines[1].encode() not in received
    is_cut(received, length=length)
    assert service.told(name) == ["paused", "generator ended", "settled rolled_back"]
    assert f"{name}-written" not in service.kept(name)


@pytest.mark.parametrize("length", [0, 1000])
@pytest.mark.parametrize("how", HOWS)
def test_L15_a_stream_that_outlasts_its_time_is_closed_and_cut(
    impatient: Service, name: str, how: str, length: int
) -> None:
    lines = rows(impatient, name)
    sent = begin(impatient, "GET", "stream", name, how=how, length=length)
    impatient.wait_until_told(name, "settled ")  # although the generator has not moved
    assert impatient.seen()["checked_out"] == 0
    impatient.release(name)
    received = sent.read_until_closed()
    assert lines[0].encode() in received
    assert lines[1].encode() not in received
    is_cut(received, length=length)
    assert impatient.told(name)[:2] == ["paused", "settled rolled_back"]
    assert "background" not in impatient.told(name)


def test_L15_a_stream_in_time_is_not_cut(patient: Service, name: str) -> None:
    lines = rows(patient, name)
    sent = begin(patient, "GET", "stream", name, how="execute")
    patient.release(name)
    answer = sent.answer()
    assert answer is not None
    assert answer.body == "".join(lines).encode()


@pytest.mark.parametrize(("how", "kind"), [("swallows", "unit-doomed"), ("forgotten", "read-only-unit")])
def test_L15_what_the_handler_did_is_judged_before_the_first_byte(
    service: Service, name: str, how: str, kind: str
) -> None:
    assert problem(service.get("stream-refused", name=name, how=how)) == (500, kind)
    told = service.told(name)
    assert "paused" not in told
    assert told[-1] == "settled rolled_back"
    assert service.kept(name) == []


# L16


def test_L16_a_unit_that_writes_is_committed_before_the_first_byte(service: Service, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        sent = service.send("POST", "stream-after-writing", name=name)
        hold.wait_until_waiting()
        assert not sent.arrived(within=A_MOMENT)
        assert service.kept(name) == []
        hold.release()
        service.wait_until_told(name, "paused")
    assert service.kept(name) == [name]
    assert service.seen(name)["told"] == ["settled committed", "paused"]
    assert service.seen()["checked_out"] == 0
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert (answer.status, answer.body) == (201, b"first\nlast\n")
    assert service.told(name) == ["settled committed", "paused", "on_commit", "background"]


@pytest.mark.parametrize("length", [0, len("first\nlast\n")])
@pytest.mark.parametrize("touch", ["execute", "flush", "add", "cursor of the handler", "current_session"])
def test_L16_a_generator_that_touches_the_session_is_refused_and_its_body_is_cut(
    service: Service, name: str, touch: str, length: int
) -> None:
    sent = begin(service, "POST", "stream-after-writing", name, how=touch, length=length)
    service.release(name)
    received = sent.read_until_closed()
    assert received.startswith(b"HTTP/1.1 201 ")
    assert FIRST in received
    assert b"last" not in received
    is_cut(received, length=length)
    told = service.told(name)
    assert told[2].startswith(f"{touch}: UnitOfWorkClosed: POST /{service.mode}/stream-after-writing: ")
    assert [told[:2], *told[3:]] == [["settled committed", "paused"], "on_commit"]
    assert service.kept(name) == [name]


def test_L16_so_is_one_that_touches_it_before_its_first_chunk(service: Service, name: str) -> None:
    received = service.send("POST", "stream-after-writing", name=name, how="early").read_until_closed()
    assert received.startswith(b"HTTP/1.1 201 ")
    assert FIRST not in received
    is_cut(received)
    assert service.told(name)[1].startswith("early: UnitOfWorkClosed: ")
    assert service.kept(name) == [name]


def test_L16_loading_more_through_an_object_is_refused_too(service: Service, name: str) -> None:
    sent = begin(service, "POST", "stream-after-writing", name, how="lazy load")
    service.release(name)
    is_cut(sent.read_until_closed())
    assert service.told(name)[2].startswith("lazy load: DetachedInstanceError: ")
    assert service.kept(name) == [name]


def test_L16_a_generator_may_open_a_unit_of_its_own(service: Service, name: str) -> None:
    sent = begin(service, "POST", "stream-after-writing", name, how="new_unit")
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert answer.body == b"first\nlast\n"
    assert service.kept(name) == [name, f"{name}-own"]


@pytest.mark.parametrize("length", [0, len("first\nlast\n")])
def test_L16_and_L27_a_generator_that_fails_undoes_nothing_and_its_body_is_cut(
    service: Service, name: str, length: int
) -> None:
    log = len(service.server.log())
    sent = begin(service, "POST", "stream-after-writing", name, how="raises", length=length)
    service.release(name)
    received = sent.read_until_closed()
    assert received.count(b"HTTP/1.1 ") == 1
    is_cut(received, length=length)
    assert service.told(name) == ["settled committed", "paused", "on_commit"]
    assert service.kept(name) == [name]
    assert "PurposelyFailed: a generator" in service.new_log(log)


def test_L16_a_client_that_leaves_in_the_middle_undoes_nothing(service: Service, name: str) -> None:
    sent = begin(service, "POST", "stream-after-writing", name)
    sent.reset()
    if service.mode == "sync":
        service.release(name)  # nobody can stop a thread
    service.wait_until_told(name, "on_commit")
    assert service.told(name)[:2] == ["settled committed", "paused"]
    assert service.told(name).count("on_commit") == 1
    assert service.kept(name) == [name]


def test_L16_a_refused_commit_is_answered_instead_of_the_stream(service: Service, name: str) -> None:
    answer = service.post("stream-after-writing", name=name, how="refused")
    assert problem(answer) == (409, "foreign-key-violation")
    assert service.told(name) == ["settled rolled_back"]  # the generator has never run
    assert service.kept(name) == []


def test_L16_an_error_status_is_rolled_back_before_the_first_byte(service: Service, name: str) -> None:
    sent = begin(service, "POST", "stream-after-writing", name, status=409)
    assert service.seen(name)["told"] == ["settled rolled_back", "paused"]
    assert service.seen()["checked_out"] == 0
    service.release(name)
    answer = sent.answer()
    assert answer is not None
    assert (answer.status, answer.body) == (409, b"first\nlast\n")
    assert service.kept(name) == []
