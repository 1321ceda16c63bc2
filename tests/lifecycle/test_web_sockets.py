"""L19: a WebSocket opens a unit for each message, and an acknowledgement is a promise."""

import contextlib
import json
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.lifecycle.service import Service
from tests.support.hold import hold_commits
from tests.support.wait import LIMIT

A_MOMENT = 0.3  # seconds in which a message that does not wait for COMMIT would be here many times over
REMEDY = "new_unit()"


class Talk:
    """One WebSocket to the app."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def send(self, case: str, name: str) -> None:
        self._connection.send(json.dumps({"case": case, "name": name}))

    def receive(self) -> str:
        return self._connection.recv(timeout=LIMIT, decode=True)

    def ask(self, case: str, name: str) -> str:
        self.send(case, name)
        return self.receive()

    def hears_nothing(self) -> bool:
        """Whether no message comes within a moment."""
        try:
            self._connection.recv(timeout=A_MOMENT)
        except TimeoutError:
            return True
        return False

    def is_closed(self) -> bool:
        """Whether the app closes it and sends no other message first."""
        try:
            self.receive()
        except ConnectionClosed:
            return True
        return False

    def leave(self) -> None:
        """Go without a closing handshake."""
        self._connection.socket.close()


@pytest.fixture
def talk(service: Service, name: str) -> Iterator[Talk]:
    """A WebSocket to the app, under the name of the test."""
    url = f"ws://127.0.0.1:{service.server.port}{service.path('socket')}?name={name}"
    with (
        contextlib.suppress(ConnectionClosed),
        connect(url, open_timeout=LIMIT, close_timeout=LIMIT, proxy=None) as connection,
    ):
        yield Talk(connection)


def test_L19_each_message_has_a_unit_of_its_own(service: Service, talk: Talk, name: str) -> None:
    for number in (1, 2, 3):
        assert talk.ask("writes", f"{name}-{number}") == f"kept {name}-{number}"
        assert f"{name}-{number}" in service.kept(name)
        assert service.seen()["checked_out"] == 0
        assert service.seen(f"{name}-{number}")["told"] == ["on_commit"]
    assert service.seen(name)["told"] == ["new_unit committed"] * 3


def test_L19_no_acknowledgement_leaves_before_commit(service: Service, talk: Talk, name: str) -> None:
    with hold_commits(service.backend, "items") as hold:
        talk.send("writes", name)
        hold.wait_until_waiting()
        assert talk.hears_nothing()
        assert service.kept(name) == []
        hold.release()
        assert talk.receive() == f"kept {name}"
    assert service.kept(name) == [name]


def test_L19_a_message_whose_commit_is_refused_leaves_the_next_one_alone(
    service: Service, talk: Talk, name: str
) -> None:
    assert talk.ask("is refused", name) == f"refused {name}"
    assert service.kept(name) == []
    assert talk.ask("writes", f"{name}-next") == f"kept {name}-next"
    assert service.seen(name)["told"] == ["new_unit rolled_back", "new_unit committed"]


def is_refused(told: str) -> None:
    assert told.startswith("send: SendRefused: ")
    assert "a message" in told  # the name of the unit


def test_L19_sending_while_a_unit_is_open_for_writing_is_refused(
    service: Service, talk: Talk, name: str
) -> None:
    talk.send("sends inside", name)
    assert talk.is_closed()
    refused, *told = service.told(name)
    is_refused(refused)
    assert told == ["new_unit rolled_back"]
    assert service.kept(name) == []


def test_L19_a_refused_message_never_leaves(service: Service, talk: Talk, name: str) -> None:
    assert talk.ask("swallows", name) == f"kept {name}"
    refused, *told = service.seen(name)["told"]
    is_refused(refused)
    assert told == ["new_unit committed"]
    assert service.kept(name) == [name]


def test_L19_a_unit_that_only_reads_may_send(service: Service, talk: Talk, name: str) -> None:
    assert talk.ask("reads", name) == "seed-1"
    assert talk.ask("writes", name) == f"kept {name}"


def test_L19_a_web_socket_has_no_unit_and_is_told_what_to_write(
    service: Service, talk: Talk, name: str
) -> None:
    assert talk.ask("asks", name) == "asked"
    (told,) = service.seen(name)["told"]
    assert told.startswith("current_session: NoUnitOfWork: ")
    assert REMEDY in told


def test_L19_a_client_that_leaves_during_commit_changes_nothing(
    service: Service, talk: Talk, name: str
) -> None:
    with hold_commits(service.backend, "items") as hold:
        talk.send("writes", name)
        hold.wait_until_waiting()
        talk.leave()
        hold.release()
        service.wait_until_told(name, "on_commit")
    assert service.kept(name) == [name]
