"""`[[unit_of_work.rules]]` in force: the operator's last word on the units of a running service."""

from __future__ import annotations

import json

from tests.api.service import Service, new_item


def test_a_rule_of_the_configuration_holds_in_every_worker(own_service: Service) -> None:
    rule = {"match": "PATCH /items/*", "read_only": True}
    own_service.env["UOW_UNIT_OF_WORK__RULES"] = json.dumps([rule])
    own_service.env["UOW_SERVER__WORKERS"] = "2"
    own_service.start()
    client = own_service.client()
    item_id = new_item(client)
    refused = client.patch(f"/items/{item_id}", json={"price": 1})
    assert (refused.status_code, refused.json()["type"]) == (500, "/problems/read-only-unit")
    assert client.delete(f"/items/{item_id}").status_code == 204
