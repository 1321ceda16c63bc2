"""One running service for each engine, shared by all tests here that do not stop it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from tests.api.guarded import GuardedService, Keys
from tests.api.service import Service, new_backend
from tests.support.backends import LEGS, Leg
from tests.support.postgres import PostgresServers
from tests.support.wait import LIMIT


@pytest.fixture(scope="session", params=LEGS)
def service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_servers: PostgresServers,
) -> Iterator[Service]:
    """The service on each engine, with the rows of other tests in it."""
    leg = cast("Leg", request.param)
    if leg != "sqlite" and not postgres_servers.available(leg):
        pytest.skip(f"no PostgreSQL for {leg} found")
    folder = tmp_path_factory.mktemp(f"service-{leg}")
    backend = new_backend(leg, folder, postgres_servers)
    running = Service(backend, folder)
    running.start()
    yield running
    running.close()
    backend.drop()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of the shared service, which keeps its connections."""
    with httpx.Client(base_url=service.base_url, timeout=LIMIT, trust_env=False) as made:
        yield made


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedService]:
    """The service with API keys, on SQLite: what a guard refuses comes to no database."""
    running = GuardedService(tmp_path_factory.mktemp("guarded"))
    running.start()
    yield running
    running.close()
    running.backend.drop()


@pytest.fixture(scope="session")
def keys(guarded: GuardedService) -> Keys:
    """The keys that it knows."""
    return guarded.keys


@pytest.fixture(scope="session")
def keyless(guarded: GuardedService) -> Iterator[httpx.Client]:
    """A client of it that sends no key by itself."""
    with httpx.Client(base_url=guarded.base_url, timeout=LIMIT, trust_env=False) as made:
        yield made


@pytest.fixture
def own_service(service_leg: Leg, tmp_path: Path, postgres_servers: PostgresServers) -> Iterator[Service]:
    """A service on a database of its own, not started yet: the test may stop and kill it."""
    backend = new_backend(service_leg, tmp_path, postgres_servers)
    made = Service(backend, tmp_path)
    yield made
    made.close()
    backend.drop()


@pytest.fixture(params=LEGS)
def service_leg(request: pytest.FixtureRequest, postgres_servers: PostgresServers) -> Leg:
    """Each engine that is there."""
    leg = cast("Leg", request.param)
    if leg != "sqlite" and not postgres_servers.available(leg):
        pytest.skip(f"no PostgreSQL for {leg} found")
    return leg
