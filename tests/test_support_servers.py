"""Server processes, their clients, and COMMIT held open, on the smallest app there is."""

import signal
import sys
import threading
from pathlib import Path

import anyio
import httpx
import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.asgi import AsgiCall, Timeline, watch
from tests.support.backends import Backend, Mode, PostgresBackend
from tests.support.gate import install_commit_gate
from tests.support.hold import PostgresHold, hold_commits
from tests.support.processes import is_running
from tests.support.sample_app import app_of, schema
from tests.support.server import Serve, UvicornServer
from tests.support.wait import wait_until

APP = "tests.support.sample_app:create_app"


@pytest.fixture
def server(serve: Serve, items_table: Backend, mode: Mode) -> UvicornServer:
    """The sample app in a process of its own."""
    return serve(APP, backend=items_table, mode=mode)


# Server processes


def test_a_server_answers_and_its_lifespan_is_up(server: UvicornServer) -> None:
    assert server.client().post("/items/", params={"name": "nut"}).status_code == 201
    assert server.client().get("/items/").json() == ["nut"]
    assert server.log().count("Application startup complete.") == 1


@pytest.mark.backends("sqlite")
@pytest.mark.modes("async")
class TestServerProcess:
    def test_a_killed_server_comes_back_on_its_port_with_what_it_acknowledged(
        self, server: UvicornServer
    ) -> None:
        client, address, pid = server.client(), server.base_url, server.pid
        assert client.post("/items/", params={"name": "nut"}).status_code == 201
        server.kill()
        with pytest.raises(httpx.ConnectError):
            client.get("/items/")
        server.start()
        assert (server.base_url, client.get("/items/").json()) == (address, ["nut"])
        assert server.pid != pid

    def test_a_terminated_server_shuts_its_lifespan_down(self, server: UvicornServer) -> None:
        assert server.terminate() in (0, -signal.SIGTERM)
        assert "Application shutdown complete." in server.log()
        assert not server.alive

    def test_workers_serve_and_die_together(self, serve: Serve, items_table: Backend) -> None:
        server = serve(APP, backend=items_table, mode="sync", workers=2, loop="asyncio")
        pid = server.client().post("/items/", params={"name": "nut"}).json()["pid"]
        assert pid != server.pid
        server.restart()
        assert not is_running(pid)
        assert server.client().get("/items/").json() == ["nut"]

    def test_a_server_that_cannot_start_tells_why(self, serve: Serve) -> None:
        with pytest.raises(RuntimeError, match="this app cannot start"):
            serve("tests.support.sample_app:create_broken_app")

    def test_any_command_can_be_served(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "livez").write_text("ok")
        where = ["--bind", "127.0.0.1", "--directory", str(tmp_path), "{port}"]
        server = serve.command(sys.executable, "-m", "http.server", *where)
        assert server.client().get("/livez").text == "ok"

    def test_the_settings_of_whoever_runs_the_tests_do_not_reach_a_server(
        self, serve: Serve, items_table: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UVICORN_FACTORY", "nonsense")
        assert serve(APP, backend=items_table).alive

    def test_an_answer_is_read_from_a_bare_connection(self, server: UvicornServer) -> None:
        client = server.raw()
        assert not client.arrived()
        answer = client.request("POST", "/items/?name=bolt", {"ignored": True}).answer()
        assert answer is not None
        assert answer.status == 201
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["pid"] == server.pid
        assert server.raw().request("GET", "/nothing").read_until_closed().startswith(b"HTTP/1.1 4")

    def test_a_client_can_vanish(self, server: UvicornServer) -> None:
        client = server.raw().request("GET", "/items/")
        client.reset()
        assert server.client().get("/items/").json() == []


# COMMIT held open


def test_not_a_byte_arrives_while_commit_is_held_open(server: UvicornServer, items_table: Backend) -> None:
    client = server.raw()
    with hold_commits(items_table, "items") as hold:
        client.request("POST", "/items/?name=nut")
        hold.wait_until_waiting()
        assert not client.arrived(within=0.2)
        assert client.peek() == b""
        assert items_table.count("items") == 0
        # The event loop, or another thread, goes on meanwhile.
        assert server.client().get("/items/").json() == []
        hold.release()
        answer = client.answer()
    assert answer is not None
    assert answer.status == 201
    assert items_table.count("items") == 1


def test_a_server_killed_inside_commit_has_acknowledged_nothing(
    server: UvicornServer, items_table: Backend
) -> None:
    with hold_commits(items_table, "items") as hold:
        for number in range(3):
            hold.hold()
            client = server.raw().request("POST", f"/items/?name=nut{number}")
            hold.wait_until_waiting()
            server.kill()
            assert client.read_until_closed() == b""
            hold.release()
            wait_until(lambda: hold.waiting() == 0, "nobody waits for the dead")
            items_table.wait_until_at_rest()
            server.start()
    assert server.client().post("/items/", params={"name": "bolt"}).status_code == 201


def test_a_connection_can_be_cut_inside_commit(postgres: PostgresBackend) -> None:
    postgres.execute(schema("postgresql"))
    hold = PostgresHold(postgres, "items")
    hold.hold()
    failed = threading.Event()

    def write() -> None:
        with psycopg.connect(postgres.server.url(postgres.dbname)) as connection:
            connection.execute("INSERT INTO items (name) VALUES ('nut')")
            try:
                connection.commit()
            except psycopg.OperationalError:
                failed.set()

    thread = threading.Thread(target=write)
    thread.start()
    hold.wait_until_waiting()
    assert hold.terminate_waiting() == 1
    thread.join()
    hold.close()
    assert failed.is_set()
    assert postgres.count("items") == 0


async def test_commit_is_held_on_this_event_loop_too(items_table: Backend, timeline: Timeline) -> None:
    engine = create_async_engine(items_table.url("async"))
    install_commit_gate(engine, items_table.gate)
    with hold_commits(items_table, "items") as hold, watch(timeline, engine):
        async with anyio.create_task_group() as group:
            call = AsgiCall(app_of(engine), "POST", "/items/?name=nut", timeline=timeline)
            group.start_soon(call.run)
            await hold.wait_until_waiting_async()
            assert timeline == ["BEGIN"]
            hold.release()
    assert timeline == ["BEGIN", "COMMIT", "start 201", "body last"]
    await engine.dispose()
    assert items_table.count("items") == 1
