"""The side of `uow`: the same handlers, with the session of the request's unit."""

from dataclasses import dataclass
from itertools import count

from fastapi import APIRouter, FastAPI
from sqlalchemy import select
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.models import Item, ItemOut, Receipt
from uow import Database, UnitOfWorkMiddleware, current_session
from uow.idempotency import IdempotencyMiddleware
from uow.outbox import Outbox, Stdout, event, publish

router = APIRouter()


@router.get("/items/{item_id}")
async def get_item(item_id: int) -> ItemOut:
    item = await current_session().get(Item, item_id)
    return ItemOut.model_validate(item)


@router.get("/items/")
async def list_items() -> list[ItemOut]:
    items = await current_session().scalars(select(Item).order_by(Item.id).limit(50))
    return [ItemOut.model_validate(item) for item in items]


@router.post("/items/", status_code=201)
async def create_item(name: str) -> ItemOut:
    session = current_session()
    item = Item(name=name)
    session.add(item)
    await session.flush()
    return ItemOut.model_validate(item)


@router.post("/items/{item_id}/receipts", status_code=201)
async def receive(item_id: int, quantity: int) -> ItemOut:
    session = current_session()
    item = await session.get_one(Item, item_id, with_for_update=True)
    item.stock += quantity
    session.add(Receipt(item_id=item_id, quantity=quantity))
    return ItemOut.model_validate(item)


telling = APIRouter()


@event("item.changed", subject="items/{item_id}")
@dataclass
class ItemChanged:
    item_id: int
    name: str
    stock: int


@telling.post("/items/", status_code=201)
async def create_and_tell(name: str) -> ItemOut:
    made = await create_item(name)
    publish(ItemChanged(made.id, made.name, made.stock))
    return made


@telling.post("/items/{item_id}/receipts", status_code=201)
async def receive_and_tell(item_id: int, quantity: int) -> ItemOut:
    changed = await receive(item_id, quantity)
    publish(ItemChanged(changed.id, changed.name, changed.stock))
    return changed


def app_with_events(database: Database) -> FastAPI:
    Outbox(database, [Stdout()], source="/benchmark")  # what is owed stays: no relay runs
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.include_router(telling)
    return app


class WithKey:
    """Sends each request with a key that nobody has used."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._number = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"].append((b"idempotency-key", b"key-%d" % next(self._number)))
        await self.app(scope, receive, send)


def app_with_neither(database: Database) -> FastAPI:
    """It takes keys, requires one elsewhere, and has an outbox: its requests send and publish nothing."""
    Outbox(database, [Stdout()], source="/benchmark")
    app = FastAPI()
    elsewhere = ["POST /items/{item_id}/receipts"]
    app.add_middleware(IdempotencyMiddleware, principal=None, required=elsewhere)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.include_router(router)
    return app


def app_with_keys(database: Database) -> ASGIApp:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, principal=None)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.include_router(router)
    return WithKey(app)


def app_with_uow(database: Database) -> FastAPI:
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.include_router(router)
    return app
