"""The service tells others what it has committed, and operators look after what could not be told."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api.settings import ConfigurationError, Settings, load_settings
from tests.api.service import in_process, run_api, write_config
from tests.support.backends import Backend
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.uow.test_outbox_webhooks import receiving

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
NOWHERE = {"name": "shop", "url": "http://127.0.0.1:1/"}


def outbox(*destinations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"destinations": [*destinations], **more}


def events(backend: Backend) -> list[tuple[str, str, dict[str, Any]]]:
    rows = backend.query("SELECT type, subject, data FROM outbox_events ORDER BY number")
    return [(kind, subject, json.loads(data)) for kind, subject, data in rows]


async def test_each_use_case_publishes_what_it_has_done(backend: Backend) -> None:
    database = {"url": backend.database_url}
    async with in_process(database=database, outbox=outbox(NOWHERE)) as (_, client):
        item = (await client.post("/items/", json={"name": "Mug", "price": 1250, "stock": 3})).json()
        receipt = (await client.post(f"/items/{item['id']}/receipts", json={"quantity": 4})).json()
        lines = [{"item_id": item["id"], "quantity": 2}]
        order = (await client.post("/orders/", json={"lines": lines})).json()
        assert (await client.post(f"/orders/{order['id']}/cancel")).status_code == 200
    mug, its_order = f"items/{item['id']}", f"orders/{order['id']}"
    assert events(backend) == [
        (
            "item.created",
            mug,
            {"item_id": item["id"], "name": "Mug", "sku": None, "price": 1250, "stock": 3},
        ),
        (
            "item.received",
            mug,
            {"item_id": item["id"], "receipt_id": receipt["id"], "quantity": 4, "stock": 7},
        ),
        (
            "order.placed",
            its_order,
            {"order_id": order["id"], "lines": [{**lines[0], "unit_price": 1250}]},
        ),
        ("order.cancelled", its_order, {"order_id": order["id"]}),
    ]


async def test_what_is_refused_is_told_to_nobody(backend: Backend) -> None:
    async with in_process(database={"url": backend.database_url}, outbox=outbox(NOWHERE)) as (_, client):
        item = (await client.post("/items/", json={"name": "Mug", "sku": "M", "price": 1})).json()
        assert (await client.post("/items/", json={"name": "Mug", "sku": "M", "price": 1})).status_code == 409
        lines = [{"item_id": item["id"], "quantity": 1}]
        assert (await client.post("/orders/", json={"lines": lines})).status_code == 409
        assert (await client.post("/orders/99/cancel")).status_code == 404
    assert [kind for kind, _, _ in events(backend)] == ["item.created"]


async def test_without_a_destination_nothing_is_written(backend: Backend) -> None:
    async with in_process(database={"url": backend.database_url}) as (_, client):
        assert (await client.post("/items/", json={"name": "Mug", "price": 1})).status_code == 201
    assert events(backend) == []


async def test_serve_sends_them_where_it_is_told_to(backend: Backend) -> None:
    async with receiving() as receiver:
        to = {"name": "shop", "url": receiver.url, "secrets": [SECRET]}
        settings = outbox(to, relay=True, poll=0.05, source="/mugs")
        async with in_process(database={"url": backend.database_url}, outbox=settings) as (_, client):
            await client.post("/items/", json={"name": "Mug", "price": 1})
            await until(lambda: receiver.requests)
        ((_, headers, body),) = receiver.requests
    assert json.loads(body)["source"] == "/mugs"
    assert json.loads(body)["type"] == "item.created"
    assert headers["webhook-signature"].startswith("v1,")


async def until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true within 30 s")


def config(backend: Backend, folder: Path, *, to: str = "", **keys: object) -> Path:
    path = folder / "outbox.toml"
    text = [f"[database]\nurl = {json.dumps(backend.database_url)}\n\n[outbox]"]
    text += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    text += [DESTINATION.format(**NOWHERE | {"name": to})] if to else []
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


DESTINATION = """
[[outbox.destinations]]
name = "{name}"
url = "{url}"
"""


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(call, *arguments)


async def one_item(backend: Backend, url: str) -> None:
    to = {"name": "shop", "url": url}
    async with in_process(database={"url": backend.database_url}, outbox=outbox(to)) as (_, client):
        await client.post("/items/", json={"name": "Mug", "price": 1})


async def test_a_process_of_its_own_sends_them_and_ends_in_order(backend: Backend, tmp_path: Path) -> None:
    async with receiving() as receiver:
        await one_item(backend, receiver.url)
        path = config(backend, tmp_path, poll="100ms")
        path.write_text(path.read_text() + DESTINATION.format(name="shop", url=receiver.url))
        command = [sys.executable, "-m", "api", "relay", "--config", str(path)]
        log = tmp_path / "relay.log"
        relay = Child(command, log=log, env=python_environment({"PYTHONPATH": str(ROOT)}), cwd=tmp_path)
        try:
            await until(lambda: receiver.requests or not relay.alive)
            assert relay.alive, log.read_text()
            await until(lambda: events(backend) == [])
        finally:
            ended = await in_thread(relay.stop, signal.SIGTERM)
    assert ended == 0, log.read_text()
    assert "are sent to shop." in log.read_text()


async def test_operators_see_what_is_dead_and_retry_or_discard_it(backend: Backend, tmp_path: Path) -> None:
    await one_item(backend, NOWHERE["url"])
    path = str(config(backend, tmp_path, to="shop"))
    nothing = await in_thread(run_api, "outbox", "list", "--config", path)
    assert (nothing.stdout, nothing.stderr) == ("", "")
    backend.execute(
        "UPDATE outbox_events SET state = 'dead', attempts = 20, error = 'Refused: answered with 500'"
    )
    listed = await in_thread(run_api, "outbox", "list", "--config", path)
    assert listed.stdout.split("  ")[1:3] == ["dead", "shop"]
    assert "item.created  items/1  20 attempts" in listed.stdout
    assert "Refused: answered with 500" in listed.stdout
    as_json = await in_thread(run_api, "outbox", "list", "--json", "--destination", "shop", "--config", path)
    (found,) = json.loads(as_json.stdout)
    assert found["state"] == "dead"
    number = str(found["number"])
    retried = await in_thread(run_api, "outbox", "retry", number, "--config", path)
    assert (retried.returncode, retried.stdout) == (0, "1 will be sent again.\n")
    assert backend.query("SELECT state, attempts FROM outbox_events") == [("pending", 0)]
    nothing = await in_thread(run_api, "outbox", "discard", "--all", "--config", path)
    assert (nothing.returncode, nothing.stdout) == (0, "0 are discarded.\n")
    pending = await in_thread(run_api, "outbox", "list", "--state", "pending", "--config", path)
    assert pending.stdout.startswith(f"{number}  pending  shop")
    discarded = await in_thread(run_api, "outbox", "discard", number, "99", "--config", path)
    assert (discarded.returncode, discarded.stdout) == (1, "1 are discarded.\n")
    assert "1 of these numbers are no events" in discarded.stderr
    assert events(backend) == []


@pytest.mark.backends("sqlite")
async def test_what_is_owed_to_a_destination_that_was_renamed_is_seen_and_kept_or_given_up(
    backend: Backend, tmp_path: Path
) -> None:
    await one_item(backend, NOWHERE["url"])
    await one_item(backend, NOWHERE["url"])
    backend.execute("UPDATE outbox_events SET state = 'dead' WHERE number = 1")
    path = str(config(backend, tmp_path, to="store"))
    listed = await in_thread(run_api, "outbox", "list", "--json", "--config", path)
    assert [each["number"] for each in json.loads(listed.stdout)] == [1]
    said = "shop, to which 1 of the events are owed, is no destination of the configuration"
    assert said in listed.stderr
    assert "add [[outbox.destinations]] of this name, or give them up with `python -m api" in listed.stderr
    checked = await in_thread(run_api, "check", "--json", "--config", path)
    (finding,) = [each for each in json.loads(checked.stdout) if each["what"] == "events"]
    assert (finding["ok"], finding["warning"]) == (True, True)
    assert finding["said"].startswith(said)
    for which in (["2"], ["--all"]):
        kept = await in_thread(run_api, "outbox", "retry", *which, "--config", path)
        assert (kept.returncode, kept.stdout) == (1, "")
        assert kept.stderr.startswith("Nothing was changed.\nshop, to which ")
    assert backend.query("SELECT state FROM outbox_events ORDER BY number") == [("dead",), ("pending",)]
    remedy = ["discard", "--all", "--state", "all", "--destination", "shop"]
    assert " ".join(remedy) in kept.stderr
    given_up = await in_thread(run_api, "outbox", *remedy, "--config", path)
    assert (given_up.returncode, given_up.stdout) == (0, "2 are discarded.\n")
    checked = await in_thread(run_api, "check", "--json", "--config", path)
    assert [each for each in json.loads(checked.stdout) if each["what"] == "events"] == []


@pytest.mark.backends("sqlite")
async def test_what_waits_for_one_destination_can_be_sent_or_given_up_as_a_whole(
    backend: Backend, tmp_path: Path
) -> None:
    for _ in range(2):
        await one_item(backend, NOWHERE["url"])
    path = str(config(backend, tmp_path, to="shop"))
    backend.execute("UPDATE outbox_events SET attempts = 3")
    pending = ["--all", "--state", "pending", "--destination", "shop", "--config", path]
    for wrong in (["--all", "--state", "pending"], ["1", "--state", "all", "--destination", "shop"]):
        refused = await in_thread(run_api, "outbox", "discard", *wrong, "--config", path)
        assert refused.returncode == 2
        assert "--state goes with --all and --destination" in " ".join(refused.stderr.split())
    assert (await in_thread(run_api, "outbox", "retry", *pending)).stdout == "2 will be sent again.\n"
    assert backend.query("SELECT attempts FROM outbox_events") == [(0,), (0,)]
    assert (await in_thread(run_api, "outbox", "discard", *pending)).stdout == "2 are discarded.\n"


@pytest.mark.backends("sqlite")
async def test_commands_say_what_keeps_them(backend: Backend, tmp_path: Path) -> None:
    path = str(config(backend, tmp_path))
    nothing_to_send = await in_thread(run_api, "relay", "--config", path)
    assert nothing_to_send.returncode == 2
    assert "are none, so there is nothing to send" in nothing_to_send.stderr
    no_file = await in_thread(run_api, "outbox", "list", "--config", path)
    assert no_file.returncode == 65
    assert "cannot outbox list: The schema is at revision none" in no_file.stderr
    assert not (tmp_path / "test.db").exists()
    both = await in_thread(run_api, "outbox", "retry", "1", "--all", "--config", path)
    assert both.returncode == 2
    assert "not both" in both.stderr
    in_memory = await in_thread(
        run_api,
        "outbox",
        "list",
        "--config",
        str(write_config(tmp_path / "m.toml", {"database": {"url": "sqlite://"}})),
    )
    assert in_memory.returncode == 2
    assert "in the memory of one process" in in_memory.stderr


@pytest.mark.backends("sqlite")
async def test_a_schema_without_the_table_is_said(backend: Backend, tmp_path: Path) -> None:
    backend.execute(
        "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('0002')"
    )
    found = await in_thread(run_api, "outbox", "list", "--config", str(config(backend, tmp_path)))
    assert found.returncode == 65
    assert "at revision 0002" in found.stderr


WRONG = [
    ({"name": "A b", "url": "https://x"}, "name"),
    ({"name": "a"}, "is no address"),
    ({"name": "a", "url": "ftp://x"}, "is no address"),
    ({"name": "a", "url": "https://x:99999"}, "is no address"),
    ({"name": "a", "url": "https://me:secret@x"}, "no user and no password"),
    ({"name": "a", "url": "https://x", "secrets": ["whsec_short"]}, "24 to 64 bytes"),
    ({"name": "a", "kind": "stdout", "url": "https://x"}, "is for a webhook"),
    ({"name": "a", "url": "https://x", "secret_file": "/nowhere"}, "cannot be read"),
]


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_destination_that_is_none_stops_the_start(
    backend: Backend, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    path = tmp_path / "wrong.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in wrong.items()]
    path.write_text("\n".join(["[[outbox.destinations]]", *lines, ""]))
    with pytest.raises(ConfigurationError, match=said) as error:
        load_settings(path)
    assert "secret@" not in str(error.value)
    assert "whsec_short" not in str(error.value)


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize(
    ("section", "said"),
    [
        (outbox(NOWHERE, NOWHERE), "is that of another, too"),
        (outbox(relay=True), "there are no"),
        (outbox(first_delay=10, longest_delay=1), "longer than"),
    ],
)
def test_what_does_not_go_together_is_refused(backend: Backend, section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"outbox": section})


@pytest.mark.backends("sqlite")
async def test_secrets_come_from_a_file_and_are_shown_to_nobody(backend: Backend, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text(f"{SECRET}\n{SECRET}\n")
    settings = Settings.model_validate({"outbox": outbox(NOWHERE | {"secret_file": str(secrets)})})
    (destination,) = settings.outbox.destinations
    assert destination.opened().name == "shop"
    for text, said in (("", "is empty"), ("whsec_no", "24 to 64 bytes")):
        secrets.write_text(text)
        with pytest.raises(ValidationError, match=said):
            Settings.model_validate({"outbox": outbox(NOWHERE | {"secret_file": str(secrets)})})
    with pytest.raises(ValidationError, match="beside secrets"):
        Settings.model_validate(
            {"outbox": outbox(NOWHERE | {"secret_file": str(secrets), "secrets": [SECRET]})}
        )
    path = tmp_path / "shown.toml"
    path.write_text(DESTINATION.format(**NOWHERE) + f'secrets = ["{SECRET}"]\n')
    shown = await in_thread(run_api, "config", "--config", str(path))
    assert shown.returncode == 0
    assert SECRET not in shown.stdout
    assert "whsec" not in repr(load_settings(path))


@pytest.mark.backends("sqlite")
async def test_lines_on_standard_output_are_for_trying_out(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = outbox({"name": "lines", "kind": "stdout"}, relay=True, poll=0.05)
    async with in_process(database={"url": backend.database_url}, outbox=settings) as (_, client):
        await client.post("/items/", json={"name": "Mug", "price": 1})
        await until(lambda: events(backend) == [])
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith('{"specversion"')]
    assert json.loads(line)["type"] == "item.created"
