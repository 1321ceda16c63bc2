"""Many clients at once: stock is conserved in every committed state, and nobody gets a server error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from tests.api.load import Crowd, assert_kept, assert_nothing_else, watched
from tests.api.service import BROKEN, Service, new_item, new_order, stock_of
from tests.support.wait import LIMIT, wait_until

CLIENTS = 16
STEPS = 20


def test_stock_is_conserved_while_16_clients_order_cancel_and_receive(own_service: Service) -> None:
    own_service.start()
    backend = own_service.backend
    items = [new_item(own_service.client(), stock=20) for _ in range(5)]
    with watched(backend) as looks:
        crowd = Crowd(own_service.base_url, items, customers=CLIENTS, steps=STEPS, seed=1)
        crowd.start()
        ledger = crowd.finish()
    assert crowd.failures == []
    # A deadlock would be a 503, a broken rule of the schema a 409 that is no refusal of the service.
    assert set(ledger.answers) == {200, 201, 409}
    assert sum(ledger.answers.values()) == CLIENTS * STEPS
    assert len(looks) >= 5
    assert [look for look in looks if look != []] == []
    assert_kept(backend, ledger)
    assert_nothing_else(backend, ledger, first_receipts=len(items))
    refused = [line for line in own_service.lines() if line.get("status") == 409]
    assert all(line["outcome"] == "rolled_back" for line in refused)
    backend.wait_until_at_rest()


def test_the_last_pieces_are_sold_once(service: Service, client: httpx.Client) -> None:
    item = new_item(client, stock=10)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: new_order(client, (item, 1)).status_code, range(30)))
    assert sorted(answers) == [201] * 10 + [409] * 20
    assert stock_of(client, item) == 0
    assert service.backend.query(BROKEN) == []


def test_one_of_many_cancellations_of_one_order_succeeds(service: Service, client: httpx.Client) -> None:
    item = new_item(client, stock=3)
    order = new_order(client, (item, 3)).json()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(
            pool.map(lambda _: client.post(f"/orders/{order['id']}/cancel").status_code, range(CLIENTS))
        )
    assert sorted(answers) == [200] + [409] * (CLIENTS - 1)
    assert stock_of(client, item) == 3
    assert service.backend.query(BROKEN) == []


def test_one_of_many_items_gets_the_sku(service: Service, client: httpx.Client) -> None:
    def create(_: int) -> httpx.Response:
        return client.post("/items/", json={"name": "Mug", "price": 1, "sku": "WANTED"})

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(create, range(CLIENTS)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * (CLIENTS - 1)
    refused = {answer.json()["type"] for answer in answers if answer.status_code == 409}
    assert refused == {"/problems/sku-taken"}
    assert service.backend.query("SELECT count(*) FROM items WHERE sku = ?", ["WANTED"]) == [(1,)]


def acknowledged_or_failed(crowd: Crowd, enough: int) -> bool:
    return crowd.acknowledged >= enough or bool(crowd.failures)


def test_a_server_that_is_killed_under_load_has_all_that_it_acknowledged(own_service: Service) -> None:
    """kill -9, start again, and again: every 2xx that a client has read is in the database."""
    own_service.start()
    backend = own_service.backend
    items = [new_item(own_service.client(), stock=50) for _ in range(5)]
    for number in range(2):
        crowd = Crowd(own_service.base_url, items, customers=8, steps=10_000, seed=100 * number)
        crowd.start()
        enough = 60 + 30 * number
        acknowledged = partial(acknowledged_or_failed, crowd, enough)
        wait_until(acknowledged, "enough was acknowledged", limit=4 * LIMIT)
        own_service.kill()
        ledger = crowd.finish()
        assert ledger.acknowledged >= enough
        assert len(crowd.failures) == 8
        assert all(isinstance(failure, httpx.TransportError) for failure in crowd.failures)
        assert set(ledger.answers) <= {200, 201, 409}
        own_service.start()
        assert_kept(backend, ledger)
        answer = own_service.client().get("/readyz")
        assert answer.status_code == 200
        order_id = max(ledger.orders)
        assert own_service.client().get(f"/orders/{order_id}").json()["id"] == order_id
    assert own_service.terminate(limit=LIMIT) is not None
    assert "Traceback" not in own_service.log()
