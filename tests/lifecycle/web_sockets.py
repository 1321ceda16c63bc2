"""The cases of a WebSocket, with async and with sync sessions; each message says which case it wants."""

import contextlib
from collections.abc import Awaitable, Callable

import anyio
from fastapi import APIRouter
from sqlalchemy.exc import IntegrityError
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.lifecycle.model import NO_SUCH_ITEM, Item, Part, attempt_told, tell_on_commit
from uow import current_session, current_sync_session, new_unit

Case = Callable[[WebSocket, str], Awaitable[None]]


# With async sessions


async def _writes(websocket: WebSocket, name: str) -> None:
    async with new_unit():
        current_session().add(Item(name=name))
        tell_on_commit(name)
    await websocket.send_text(f"kept {name}")


async def _is_refused(websocket: WebSocket, name: str) -> None:
    try:
        async with new_unit():
            current_session().add(Item(name=name))
            await current_session().flush()
            current_session().add(Part(name=name, item_id=NO_SUCH_ITEM))
    except IntegrityError:
        await websocket.send_text(f"refused {name}")


async def _sends_inside(websocket: WebSocket, name: str) -> None:
    async with new_unit(name="a message"):
        current_session().add(Item(name=name))
        await _tries_to_send(websocket, name)


async def _swallows(websocket: WebSocket, name: str) -> None:
    async with new_unit(name="a message"):
        current_session().add(Item(name=name))
        with contextlib.suppress(Exception):
            await _tries_to_send(websocket, name)
    await websocket.send_text(f"kept {name}")


async def _reads(websocket: WebSocket, name: str) -> None:
    async with new_unit(read_only=True):
        item = await current_session().get(Item, 1)
        assert item is not None
        await websocket.send_text(item.name)


async def _asks(websocket: WebSocket, name: str) -> None:
    try:
        current_session()
    except Exception as error:
        attempt_told(name, "current_session", error)
    await websocket.send_text("asked")


# With sync sessions: in a thread, or, where a message is to be sent, on the event loop


async def _writes_sync(websocket: WebSocket, name: str) -> None:
    def write() -> None:
        with new_unit():
            current_sync_session().add(Item(name=name))
            tell_on_commit(name)

    await anyio.to_thread.run_sync(write)
    await websocket.send_text(f"kept {name}")


async def _is_refused_sync(websocket: WebSocket, name: str) -> None:
    def write() -> None:
        with new_unit():
            current_sync_session().add(Item(name=name))
            current_sync_session().flush()
            current_sync_session().add(Part(name=name, item_id=NO_SUCH_ITEM))

    try:
        await anyio.to_thread.run_sync(write)
    except IntegrityError:
        await websocket.send_text(f"refused {name}")


async def _sends_inside_sync(websocket: WebSocket, name: str) -> None:
    with new_unit(name="a message"):
        current_sync_session().add(Item(name=name))
        await _tries_to_send(websocket, name)


async def _swallows_sync(websocket: WebSocket, name: str) -> None:
    with new_unit(name="a message"):
        current_sync_session().add(Item(name=name))
        with contextlib.suppress(Exception):
            await _tries_to_send(websocket, name)
    await websocket.send_text(f"kept {name}")


async def _reads_sync(websocket: WebSocket, name: str) -> None:
    with new_unit(read_only=True):
        item = current_sync_session().get(Item, 1)
        assert item is not None
        await websocket.send_text(item.name)


async def _asks_sync(websocket: WebSocket, name: str) -> None:
    try:
        current_sync_session()
    except Exception as error:
        attempt_told(name, "current_session", error)
    await websocket.send_text("asked")


async def _tries_to_send(websocket: WebSocket, name: str) -> None:
    try:
        await websocket.send_text(f"lie {name}")
    except Exception as error:
        attempt_told(name, "send", error)
        raise


_CASES: dict[str, dict[str, Case]] = {
    "async": {
        "writes": _writes,
        "is refused": _is_refused,
        "sends inside": _sends_inside,
        "swallows": _swallows,
        "reads": _reads,
        "asks": _asks,
    },
    "sync": {
        "writes": _writes_sync,
        "is refused": _is_refused_sync,
        "sends inside": _sends_inside_sync,
        "swallows": _swallows_sync,
        "reads": _reads_sync,
        "asks": _asks_sync,
    },
}


def _router(cases: dict[str, Case]) -> APIRouter:
    router = APIRouter()

    @router.websocket("/socket")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                message = await websocket.receive_json()
                await cases[message["case"]](websocket, message["name"])

    return router


ROUTERS = {mode: _router(cases) for mode, cases in _CASES.items()}
