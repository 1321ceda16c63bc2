"""One line for each request: what was asked, what became of it, and what the database had to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
import structlog

from api.logging import configure_logging
from api.settings import LoggingSettings
from tests.api.service import Service, in_process, new_item, new_order, on_one_engine
from tests.support.asgi import AsgiCall
from tests.support.backends import SqliteBackend


def test_a_request_that_writes_is_one_line(service: Service, client: httpx.Client) -> None:
    answer = client.post("/items/", json={"name": "Mug", "price": 1, "stock": 1})
    line = service.line_of(answer)
    assert line["method"] == "POST"
    assert line["route"] == line["path"] == "/items/"
    assert (line["status"], line["outcome"], line["level"]) == (201, "committed", "info")
    # BEGIN where it is a trip of its own, two INSERTs, COMMIT.
    assert 3 <= line["statements"] <= 5
    assert 0 < line["database_ms"] <= line["duration_ms"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["logger"] == "api.request"
    assert "client_gone" not in line


def test_the_line_names_the_route_and_the_path(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client)
    line = service.line_of(client.get(f"/items/{item_id}"))
    assert (line["route"], line["path"]) == ("/items/{item_id}", f"/items/{item_id}")
    assert (line["status"], line["outcome"]) == (200, "committed")
    assert line["statements"] >= 1


def test_a_refusal_is_rolled_back_and_no_error(service: Service, client: httpx.Client) -> None:
    item_id = new_item(client)
    line = service.line_of(new_order(client, (item_id, 1)))
    assert (line["status"], line["outcome"], line["level"]) == (409, "rolled_back", "info")
    assert line["statements"] >= 2


@pytest.mark.parametrize(("path", "status"), [("/livez", 200), ("/nope", 404), ("/items/x", 422)])
def test_a_request_without_the_database_has_no_outcome(
    service: Service, client: httpx.Client, path: str, status: int
) -> None:
    line = service.line_of(client.get(path))
    assert line["status"] == status
    assert (line["outcome"], line["statements"], line["database_ms"]) == (None, 0, 0.0)


@on_one_engine
def test_a_request_without_a_route_says_so(service: Service, client: httpx.Client) -> None:
    line = service.line_of(client.get("/nope/%0Anope"))
    assert (line["route"], line["path"]) == (None, "/nope/\nnope")


@on_one_engine
def test_a_request_keeps_the_name_that_a_proxy_gave_it(service: Service, client: httpx.Client) -> None:
    for name in ("proxy-1.A_b", "!", "~" * 128, 'a;"}{<b>%0a', "Root=1-67891233-abcdef012345678912345678"):
        answer = client.get("/nope", headers={"X-Request-ID": name})
        assert answer.headers.get_list("x-request-id") == [name]
        assert answer.json()["request_id"] == name
        assert service.line_of(answer)["request_id"] == name


@on_one_engine
@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a\xe9", "a\tb"])
def test_a_name_that_is_not_visible_or_too_long_is_replaced(client: httpx.Client, name: str) -> None:
    answer = client.get("/livez", headers=[(b"X-Request-ID", name.encode("latin-1"))])
    (given,) = answer.headers.get_list("x-request-id")
    assert len(given) == 32
    assert int(given, 16) >= 0


@on_one_engine
def test_a_request_with_two_names_has_neither(client: httpx.Client) -> None:
    answer = client.get("/livez", headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])
    (given,) = answer.headers.get_list("x-request-id")
    assert given not in {"a", "b"}


@on_one_engine
def test_two_requests_have_two_names(client: httpx.Client) -> None:
    assert client.get("/livez").headers["x-request-id"] != client.get("/livez").headers["x-request-id"]


# In this process


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What `configure_logging` sets is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_fault_is_an_error_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Literal["json", "console"]
) -> None:
    configure_logging(LoggingSettings(format=form))
    async with in_process(database={"url": SqliteBackend(tmp_path).database_url}) as (app, client):

        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("the reason")

        await client.get("/broken", headers={"X-Request-ID": "broken-1"})
    written = capsys.readouterr().err
    if form == "json":
        (line,) = [each for each in map(json.loads, written.splitlines()) if each["event"] == "request"]
        assert (line["status"], line["level"], line["request_id"]) == (500, "error", "broken-1")
        assert "RuntimeError: the reason" in line["exception"]
    else:
        assert "status=500" in written
        assert "request_id=broken-1" in written
        assert "RuntimeError: the reason" in written


@pytest.mark.usefixtures("logs")
async def test_a_path_cannot_forge_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings(format="console"))
    async with in_process(database={"url": SqliteBackend(tmp_path).database_url}) as (_, client):
        await client.get("/%0Aforged%1B[31m")
    written = capsys.readouterr().err
    assert not [line for line in written.splitlines() if line.startswith("forged")]
    assert "\x1b" not in written


@pytest.mark.usefixtures("logs")
async def test_what_is_written_during_a_request_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LoggingSettings(format="json"))
    async with in_process(database={"url": SqliteBackend(tmp_path).database_url}) as (app, client):

        @app.get("/telling")
        async def telling() -> None:
            logging.getLogger("somebody").warning("a warning of %s", "a library")

        await client.get("/telling", headers={"X-Request-ID": "telling-1"})
        logging.getLogger("somebody").warning("outside")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    by_event = {line["event"]: line.get("request_id") for line in lines}
    assert by_event["a warning of a library"] == by_event["request"] == "telling-1"
    assert by_event["outside"] is None


@pytest.mark.usefixtures("logs")
async def test_a_client_that_left_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings(format="json"))
    async with in_process(database={"url": SqliteBackend(tmp_path).database_url}) as (app, _):
        body = {"name": "Mug", "price": 1}
        await AsgiCall(app, "POST", "/items/", json=body, fail_send_at=0, spec_version="2.4").run()
    (line,) = [
        line for line in map(json.loads, capsys.readouterr().err.splitlines()) if line["event"] == "request"
    ]
    # Settled by its status, as if the client had stayed.
    assert (line["status"], line["outcome"], line["client_gone"]) == (201, "committed", True)


@pytest.mark.usefixtures("logs")
def test_the_level_is_the_least_severe_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings(level="warning", format="json"))
    logging.getLogger("somebody").info("quiet")
    logging.getLogger("somebody").warning("loud")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["level"], line["logger"]) == ("loud", "warning", "somebody")
