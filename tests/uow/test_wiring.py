"""The start-up check: each finding, and the apps that give none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AssertionPool, NullPool, StaticPool
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from examples import quickstart
from uow import Database, UnitOfWorkMiddleware, UnitSession
from uow.wiring import Code, check_wiring, log_findings

URL = "postgresql://app:secret@localhost/shop"
Add = Callable[[Starlette], None]
State = Callable[[Any], Any]


def planned(app: Any) -> Any:
    """As it is before its first request."""
    return app


def built(app: Any) -> Any:
    """As it is from its first request on; apps that are mounted in it get theirs later."""
    app.middleware_stack = app.build_middleware_stack()
    return app


@pytest.fixture(params=[planned, built])
def in_state(request: pytest.FixtureRequest) -> State:
    state: State = request.param
    return state


def found(app: object, **options: Any) -> list[Code]:
    return [finding.code for finding in check_wiring(app, **options)]


def only(app: object, **options: Any) -> str:
    """The message of the one finding."""
    (finding,) = check_wiring(app, **options)
    assert str(finding) == f"{finding.message} ({finding.code})"
    assert "secret" not in finding.message
    return finding.message


def units(database: Database | None = None) -> Middleware:
    return Middleware(UnitOfWorkMiddleware, database=database or Database(URL))


def stacked(*outermost_first: Middleware, **options: Any) -> Starlette:
    return Starlette(middleware=outermost_first, **options)


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


class GiveUpAfterTimeout:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Endpoint(HTTPEndpoint):
    def post(self, request: Request) -> Response:
        return Response()


def function(request: Request) -> Response:
    return Response()


async def log_it(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def mounting(inner: Any, *, at: str = "/v2", **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.mount(at, inner)
    return app


class TestCleanApps:
    def test_the_program_of_the_readme(self, in_state: State) -> None:
        assert found(in_state(FastAPI(routes=quickstart.app.routes, middleware=[units()]))) == []
        assert found(quickstart.app) == []

    @pytest.mark.parametrize("make", [Starlette, FastAPI])
    def test_an_app_with_the_middlewares_of_starlette(self, make: Any, in_state: State) -> None:
        """Those that neither answer for the app nor need to see the answers of ours may stand anywhere."""
        between = units()
        others = [Middleware(GZipMiddleware), Middleware(TrustedHostMiddleware)]
        routes = [
            Route("/f", function),
            Route("/c", Endpoint),
            Mount("/files", routes=[Route("/{name}", function)]),
        ]
        outside = [Middleware(CORSMiddleware), *others]
        inside = [*others, Middleware(Passing), Middleware(GiveUpAfterTimeout)]
        assert found(in_state(make(routes=routes, middleware=[*outside, between, *inside]))) == []

    def test_an_app_that_is_mounted_inside(self, in_state: State) -> None:
        inner = FastAPI()
        inner.add_api_route("/x", function)
        assert found(in_state(mounting(in_state(inner), middleware=[units()]))) == []

    def test_an_app_that_is_mounted_and_has_its_own(self, in_state: State) -> None:
        inner = in_state(FastAPI(routes=[Route("/c", Endpoint)], middleware=[units()]))
        assert found(in_state(mounting(inner, middleware=[Middleware(GZipMiddleware)]))) == []

    def test_two_databases_in_one_app(self, in_state: State) -> None:
        assert found(in_state(stacked(units(), units(Database("sqlite:///other.db"))))) == []

    def test_one_database_in_two_mounts(self) -> None:
        database = Database(URL)
        mounts = [Mount(path, Starlette(middleware=[units(database)])) for path in ("/a", "/b")]
        assert found(Starlette(routes=mounts)) == []

    def test_a_middleware_around_a_whole_app(self) -> None:
        app = Starlette(routes=[Route("/c", Endpoint)])
        assert found(UnitOfWorkMiddleware(app, database=Database(URL))) == []

    def test_a_middleware_around_a_router_that_is_no_app(self) -> None:
        """Nobody maps exceptions there, so that nothing is lost."""
        router = Router([Route("/c", Endpoint)])
        assert found(UnitOfWorkMiddleware(router, database=Database(URL))) == []

    def test_an_app_without_ours(self, in_state: State) -> None:
        app = FastAPI(
            middleware=[Middleware(Passing), Middleware(CORSMiddleware), Middleware(GiveUpAfterTimeout)]
        )
        app.mount("/self", app)  # an app may even be mounted in itself
        app.router.routes.append(BaseRoute())
        assert found(in_state(app)) == []

    @pytest.mark.parametrize(
        "app", [None, function, object(), MagicMock(), Endpoint], ids=lambda app: type(app).__name__
    )
    def test_what_is_no_app_of_starlettes(self, app: object) -> None:
        assert found(app) == []


class TestSecondMiddleware:
    def test_in_one_app(self, in_state: State) -> None:
        database = Database(URL)
        message = only(in_state(stacked(units(database), Middleware(GZipMiddleware), units(database))))
        assert message.startswith(
            "UnitOfWorkMiddleware stands inside of another one with the same <Database "
        )

    def test_in_a_mounted_app(self, in_state: State) -> None:
        database = Database(URL)
        inner = in_state(FastAPI(middleware=[units(database)]))
        message = only(in_state(mounting(inner, middleware=[units(database)])))
        assert message.startswith("UnitOfWorkMiddleware at '/v2' stands inside of another one")

    def test_around_an_app_that_has_one(self, in_state: State) -> None:
        database = Database(URL)
        app = in_state(stacked(units(database)))
        assert found(UnitOfWorkMiddleware(app, database=database)) == ["second-middleware"]


class TestBaseHTTPMiddlewareAround:
    def test_a_class(self, in_state: State) -> None:
        message = only(in_state(stacked(Middleware(Passing), units())))
        assert message.startswith("Passing, a BaseHTTPMiddleware, is outside of UnitOfWorkMiddleware: ")

    def test_a_function(self, in_state: State) -> None:
        app = FastAPI()
        app.add_middleware(UnitOfWorkMiddleware, database=Database(URL))
        app.middleware("http")(log_it)
        message = only(in_state(app))
        assert message.startswith("log_it(), a BaseHTTPMiddleware, is outside of UnitOfWorkMiddleware: ")

    def test_in_the_app_around_a_mounted_one(self, in_state: State) -> None:
        """Through FastAPI's included routers, a Host and a Mount with middlewares of its own."""
        inner = in_state(FastAPI(middleware=[units()]))
        router = APIRouter()
        mounts = [Mount("/in", Router([Mount("/deep", inner)]), middleware=[Middleware(GZipMiddleware)])]
        router.routes.append(Host("{tenant}.example.org", Router(mounts)))
        app = FastAPI(middleware=[Middleware(Passing)])
        app.include_router(router, prefix="/api")
        assert "outside of UnitOfWorkMiddleware at '/api{tenant}.example.org/in/deep'" in only(in_state(app))


class TestMiddlewareOrder:
    @pytest.mark.parametrize("make", [GiveUpAfterTimeout, type("Timeouts", (Passing,), {})])
    def test_a_timeout_outside(self, make: Any, in_state: State) -> None:
        message = only(in_state(stacked(Middleware(make), units())))
        assert message.startswith(
            f"{make.__name__}, a time-out by its name, is outside of UnitOfWorkMiddleware"
        )

    def test_a_timeout_that_is_a_function(self, in_state: State) -> None:
        async def time_out(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        app = stacked(Middleware(BaseHTTPMiddleware, dispatch=time_out), units())
        assert only(in_state(app)).startswith("time_out(), a time-out by its name")

    def test_cors_inside(self, in_state: State) -> None:
        message = only(in_state(stacked(units(), Middleware(CORSMiddleware))))
        assert message.startswith("CORSMiddleware is inside of UnitOfWorkMiddleware: the problem documents")

    def test_cors_in_a_mounted_app(self, in_state: State) -> None:
        inner = in_state(FastAPI(middleware=[Middleware(CORSMiddleware)]))
        message = only(in_state(mounting(inner, middleware=[units()])))
        assert message.startswith("CORSMiddleware at '/v2' is inside of UnitOfWorkMiddleware: ")

    @pytest.mark.parametrize(
        "route",
        [
            Mount("/v2", routes=[Route("/a", function), Route("/c", Endpoint)], middleware=[units()]),
            Mount("/v2", Router([Route("/c", Endpoint)], middleware=[units()])),
            Route("/v2/c", Endpoint, middleware=[units()]),
        ],
        ids=["mount", "router", "route"],
    )
    def test_class_based_endpoints_of_a_mount(self, route: Any, in_state: State) -> None:
        message = only(in_state(Starlette(routes=[route])))
        assert message.startswith("UnitOfWorkMiddleware at '/v2")
        assert "is on a route or mount, and Endpoint at '/v2/c' is a class: " in message

    def test_functions_of_a_mount_are_in_order(self, in_state: State) -> None:
        """Starlette maps what they raise where it calls them."""
        routes = [Route("/a", function), WebSocketRoute("/w", function)]
        mount = Mount("/v2", routes=routes, middleware=[units()])
        assert found(in_state(Starlette(routes=[mount]))) == []


class Expiring(UnitSession):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "expire_on_commit": True})


class Demanding(UnitSession, Session):
    def __init__(self, engine: Any, **options: Any) -> None:
        super().__init__(engine, **options)
        self.get_bind().dialect.name.upper()


class TestExpiresOnCommit:
    def test_a_session_class_that_sets_it(self, in_state: State) -> None:
        message = only(in_state(stacked(units(Database(URL, session_class=Expiring)))))
        assert "its sessions (UnitAsyncSession and Expiring) have expire_on_commit=True" in message

    def test_one_that_does_not(self) -> None:
        assert found(stacked(units(Database(URL, session_class=type("Mine", (UnitSession,), {}))))) == []

    def test_one_that_cannot_be_made_here_is_passed_over(self) -> None:
        assert found(stacked(units(Database(URL, session_class=Demanding)))) == []


class TestPools:
    def test_a_single_connection(self, in_state: State) -> None:
        message = only(in_state(stacked(units(Database(URL, pool_size=1, max_overflow=0)))))
        assert message.startswith(
            "<Database postgresql://app:***@localhost/shop>: each of its pools may open 1 "
        )
        assert message.endswith("be at least 2")

    @pytest.mark.parametrize(
        ("options", "nested_at_once", "is_small"),
        [
            ({}, 14, False),
            ({}, 15, True),
            ({"pool_size": 1, "max_overflow": 1}, 1, False),
            ({"pool_size": 1, "max_overflow": 1}, 2, True),
            ({"pool_size": 0}, 1000, False),
            ({"max_overflow": -1}, 1000, False),
            ({"poolclass": NullPool}, 1000, False),
            ({"poolclass": AssertionPool}, 1, True),
        ],
    )
    def test_as_many_as_nest_and_one_more(
        self, options: dict[str, Any], nested_at_once: int, is_small: bool
    ) -> None:
        codes = found(stacked(units(Database(URL, **options))), nested_at_once=nested_at_once)
        assert codes == (["pool-too-small"] if is_small else [])

    def test_engines_of_the_users_own(self) -> None:
        small = create_async_engine("postgresql+asyncpg://h/x", pool_size=1, max_overflow=0)
        large = create_async_engine("postgresql+asyncpg://h/x")
        app = stacked(units(Database.from_engines(writer=large, reader=small)))
        assert "the pool of its reader may open 1 and no more" in only(app)
        app = stacked(units(Database.from_engines(writer=small)))
        assert "the pool of its writer may open 1 and no more" in only(app)

    def test_the_queue_before_a_single_writer_does_not_count(self) -> None:
        """A unit inside a writing unit is refused there."""
        small = create_engine("sqlite:///x.db", pool_size=1, max_overflow=0)
        large = create_engine("sqlite:///x.db")
        assert found(stacked(units(Database.from_engines(sync_writer=small, sync_reader=large)))) == []
        assert "the pool of its reader" in only(stacked(units(Database.from_engines(sync_writer=small))))

    def test_one_connection_for_all(self) -> None:
        shared = create_engine("sqlite://", poolclass=StaticPool)
        message = only(stacked(units(Database.from_engines(sync_writer=shared))))
        assert "the pool of its writer gives several units the same connection" in message
        message = only(stacked(units(Database(URL, poolclass=StaticPool))))
        assert "each of its pools gives several units the same connection" in message


class TestLog:
    def test_each_finding_is_a_warning_once(self, caplog: pytest.LogCaptureFixture) -> None:
        app = stacked(Middleware(Passing), units(Database(URL, pool_size=1, max_overflow=0)))
        for _ in range(2):
            log_findings(app)
        lines = [f"wiring: {finding}" for finding in check_wiring(app)]
        assert len(lines) == 2
        assert caplog.record_tuples == [("uow", logging.WARNING, line) for line in lines]

    @pytest.mark.parametrize("started", [True, False], ids=["at the start", "with the first request"])
    def test_a_middleware_around_the_whole_app_is_seen(
        self, caplog: pytest.LogCaptureFixture, started: bool
    ) -> None:
        """At the start nobody has told the server's scope of the app yet."""
        app = built(Starlette())
        ours = UnitOfWorkMiddleware(app, database=Database(URL, pool_size=1, max_overflow=0))
        log_findings(None if started else app, ours)
        assert ["pool-too-small" in record.message for record in caplog.records] == [True]

    def test_a_middleware_in_an_app_leaves_the_look_to_the_app(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = built(stacked(Middleware(Passing), units()))
        log_findings(app, app.middleware_stack.app.app)
        assert ["base-http-middleware-around" in record.message for record in caplog.records] == [True]

    def test_a_clean_app_logs_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        log_findings(stacked(units()))
        assert caplog.records == []

    def test_an_app_that_cannot_be_looked_at_is_served_all_the_same(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Odd:
            @property
            def app(self) -> Any:
                raise KeyError("app")

        odd: Any = Odd()
        with caplog.at_level(logging.DEBUG, "uow"):
            log_findings(UnitOfWorkMiddleware(odd, database=Database(URL)))
        assert [(record.levelname, record.exc_info is not None) for record in caplog.records] == [
            ("DEBUG", True)
        ]
