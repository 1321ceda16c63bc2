"""The same with its pure ASGI middleware.

The wiring is that of its example:
https://github.com/krylosov-aa/context-async-sqlalchemy/tree/main/examples/fastapi_with_pure_asgi_example
"""

from context_async_sqlalchemy import (
    ASGIHTTPDBSessionMiddleware,
)
from fastapi import FastAPI
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.peers.context_async import WIRING, lifespan


def create_app() -> ASGIApp:
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ASGIHTTPDBSessionMiddleware)
    return build(app, WIRING)
