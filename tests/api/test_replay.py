"""L6 in the service: the settings of replay, and what the log says of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.api.service import assert_problem, in_process
from tests.support.backends import PostgresBackend

# A sequence goes on whatever is rolled back, so it counts attempts.
FAILING = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('attempts') <= {times} THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION fail();
"""
ITEM = {"name": "Mug", "price": 1}


async def create(
    postgres: PostgresBackend, *, times: int, logging: Mapping[str, Any] | None = None, **unit: Any
) -> tuple[httpx.Response, MutableMapping[str, Any], list[MutableMapping[str, Any]]]:
    """An item that the database refuses so often: the answer, its line in the log, and the other lines."""
    sections = {"database": {"url": postgres.database_url}, "unit_of_work": unit, "logging": logging or {}}
    with capture_logs() as lines:
        async with in_process(**sections) as (_, client):
            postgres.execute(FAILING.format(times=times))
            answer = await client.post("/items/", json=ITEM)
    (line,) = [each for each in lines if each["event"] == "request"]
    return answer, line, [each for each in lines if each is not line]


async def test_L6_the_line_says_how_often_a_request_was_run_and_why(postgres: PostgresBackend) -> None:
    answer, once, _ = await create(postgres, times=0)
    assert answer.status_code == 201
    assert "attempts" not in once
    assert "retried" not in once
    postgres.execute("DROP TRIGGER fail ON items; DROP FUNCTION fail; DROP SEQUENCE attempts")

    answer, line, _ = await create(postgres, times=2)
    assert answer.status_code == 201
    assert (line["attempts"], line["retried"], line["outcome"]) == (3, "serialization-failure", "committed")
    # BEGIN, where it is a trip of its own, and the INSERT that fails: twice; then the whole.
    assert line["statements"] > once["statements"] + 1
    assert postgres.count("items") == 2


async def test_L6_when_the_attempts_are_used_up_the_client_is_told_to_come_back(
    postgres: PostgresBackend,
) -> None:
    answer, line, _ = await create(postgres, times=9, retry_attempts=2)
    assert_problem(answer, 503, "serialization-failure")
    assert answer.headers["retry-after"] == "1"
    assert (line["attempts"], line["retried"], line["outcome"]) == (2, "serialization-failure", "rolled_back")
    assert postgres.count("items") == 0


@pytest.mark.parametrize(
    "unit",
    [
        {"retry_attempts": 1},
        {"rules": [{"match": "POST /items/", "retry": False}]},
        {"replay_body_limit": "10B"},
    ],
    ids=["off", "off-by-a-rule", "body-too-long"],
)
async def test_L6_a_request_is_run_once_where_the_settings_say_so(
    postgres: PostgresBackend, unit: dict[str, Any]
) -> None:
    answer, line, _ = await create(postgres, times=1, **unit)
    assert_problem(answer, 503, "serialization-failure")
    assert "attempts" not in line
    assert postgres.query("SELECT last_value FROM attempts") == [(1,)]


async def test_L6_a_slow_attempt_says_which_one_it_was(postgres: PostgresBackend) -> None:
    _, _, others = await create(postgres, times=1, logging={"slow_unit": 0.000001})
    told = [each.get("attempt") for each in others if each["event"] == "slow unit" and "route" in each]
    assert told == [None, 2]


async def test_L7_the_time_for_which_a_database_is_waited_for_is_a_setting(postgres: PostgresBackend) -> None:
    sections = {"database": {"url": postgres.database_url}, "unit_of_work": {"retry_seconds": "0s"}}
    with capture_logs() as lines:
        async with in_process(**sections) as (_, client):
            postgres.execute(FAILING.format(times=1).replace("40001", "57P03"))
            answer = await client.post("/items/", json=ITEM)
    assert answer.status_code == 503
    assert [line.get("attempts") for line in lines if line["event"] == "request"] == [None]
