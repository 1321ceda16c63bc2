"""L6 in the service: customers who order at SERIALIZABLE, under its own default of running again."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.load import Crowd, Ledger, assert_kept, assert_nothing_else, watched
from tests.api.service import Service, new_item
from tests.support.backends import PostgresBackend

LENGTH = int(os.environ.get("FAULTS", "1"))
CUSTOMERS = 16
STEPS = 6 * LENGTH
SEED = 5


@pytest.fixture
def service(postgres: PostgresBackend, tmp_path: Path) -> Iterator[Service]:
    """Not started yet: orders are placed at SERIALIZABLE, and all the rest as the code says."""
    made = Service(postgres, tmp_path)
    rule = {"match": "POST /orders/", "isolation": "serializable"}
    made.env["UOW_UNIT_OF_WORK__RULES"] = json.dumps([rule])
    yield made
    made.close()


def rush(service: Service) -> Ledger:
    """What the customers were told; stock is conserved in every snapshot that was read meanwhile."""
    print(f"seed {SEED}")  # noqa: T201 - who repeats a failure needs it
    service.start()
    items = [new_item(service.client(), stock=40) for _ in range(3)]
    with watched(service.backend) as looks:
        crowd = Crowd(service.base_url, items, customers=CUSTOMERS, steps=STEPS, seed=SEED)
        crowd.start()
        ledger = crowd.finish()
    assert crowd.failures == []
    assert sum(ledger.answers.values()) == CUSTOMERS * STEPS
    assert len(looks) >= 5
    assert [look for look in looks if look != []] == []
    assert_kept(service.backend, ledger)
    assert_nothing_else(service.backend, ledger, first_receipts=len(items))
    service.backend.wait_until_at_rest()
    return ledger


def reasons(service: Service) -> Counter[str]:
    """Why requests were run again, as their log lines say it."""
    lines = [line for line in service.lines() if line["event"] == "request" and "attempts" in line]
    assert all(line["attempts"] > 1 for line in lines)
    return Counter(line["retried"] for line in lines)


def test_L6_orders_at_serializable_fail_nobody(service: Service) -> None:
    ledger = rush(service)
    assert set(ledger.answers) <= {200, 201, 409}
    assert set(reasons(service)) == {"serialization-failure"}


def test_L6_two_workers_who_cannot_see_each_other_lose_nothing(service: Service) -> None:
    """A later attempt is alone among those of its process only: with more of them a 503 is rare."""
    service.env |= {"UOW_SERVER__WORKERS": "2", "UOW_UNIT_OF_WORK__RETRY_ATTEMPTS": "10"}
    ledger = rush(service)
    assert set(ledger.answers) <= {200, 201, 409, 503}
    assert ledger.answers[503] <= CUSTOMERS * STEPS // 20
    assert set(reasons(service)) == {"serialization-failure"}
