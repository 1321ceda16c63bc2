"""Secrets stay out of logs, out of answers, and out of what commands print."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from api.cli import app
from api.logging import configure_logging
from api.settings import LoggingSettings
from tests.api.guarded import GuardedService, Keys, made
from tests.api.service import Service, in_process, on_one_engine, write_config
from tests.support.processes import Child, free_port, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until

PASSWORD = "hunter2-of-the-database"


# The log; that of the guarded service has all that can be logged


def test_no_key_is_in_the_log_wherever_a_client_wrote_it(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys
) -> None:
    wrong = made("stranger", "read")
    asked = []
    for each in (keys.both, wrong):
        bearer = {"Authorization": f"Bearer {each.key}"}
        asked += [
            keyless.get("/items/", headers=bearer),
            keyless.get(f"/items/{each.key}", headers=bearer),
            keyless.get(f"/{each.key}/x"),
            keyless.get("/items/", params={"api_key": each.key}, headers=bearer),
            keyless.get("/items/", headers={"X-API-Key": each.key, "Cookie": each.key}),
            keyless.get("/items/", headers={"X-Request-ID": each.key}),
            keyless.get("/items/", headers={"User-Agent": each.key, "Referer": f"http://x/{each.key}"}),
            keyless.post("/items/", json={"name": each.key, "price": each.key}, headers=bearer),
            keyless.get("/livez", headers={"Host": each.key}),
        ]
    # The name of a request is what its client has given it, but for the part that is secret.
    wait_until(lambda: guarded.log().count("_***") >= 4, "the last lines are written")
    for answer in asked:
        if "inv_" not in answer.headers["x-request-id"]:
            guarded.line_of(answer)
    said = guarded.log()
    assert '"level": "debug"' in said
    for each in (*keys.all, wrong):
        assert each.secret not in said
        assert each.entry.hash not in said
    assert f"/items/inv_{keys.both.entry.id}_***" in said
    assert "authorization" not in said.lower()


# Ways to write it into the URL.
URLS = {
    "asyncpg": f"postgresql://app:{PASSWORD}@127.0.0.1:{{port}}/x",
    "query": f"postgresql://app@127.0.0.1:{{port}}/x?password={PASSWORD}",
    "psycopg": f"postgresql+psycopg://app@127.0.0.1:{{port}}/x?password={PASSWORD}",
    "key": f"postgresql+psycopg://app@127.0.0.1:{{port}}/x?sslpassword={PASSWORD}",
    "oauth": f"postgresql+psycopg://app@127.0.0.1:{{port}}/x?oauth_client_secret={PASSWORD}",
}


@pytest.mark.parametrize(
    ("level", "form"), [("debug", "asyncpg"), ("info", "query"), ("debug", "psycopg"), ("debug", "key")]
)
def test_the_password_of_the_database_is_not_in_the_log(tmp_path: Path, level: str, form: str) -> None:
    """Nor in an answer, while the database cannot be reached and everybody asks why."""
    url = URLS[form].format(port=free_port())
    config = write_config(
        tmp_path / "a.toml",
        {
            "database": {"url": url, "migrate_on_start": "never", "pool_timeout": 1},
            "server": {"port": 0},
            "unit_of_work": {"retry_seconds": 1},
            "logging": {"level": level, "format": "json"},
        },
    )
    out = tmp_path / "out.log"
    command = [sys.executable, "-m", "api", "--config", str(config)]
    child = Child(command, log=out, env=python_environment({"PYTHONPATH": str(ROOT)}), cwd=tmp_path)
    try:
        wait_until(lambda: "  settings " in out.read_text() or not child.alive, "it serves")
        (address,) = re.findall(r" is at (\S+)", out.read_text())
        with httpx.Client(base_url=address, timeout=LIMIT, trust_env=False) as client:
            answers = [client.get("/readyz"), client.get("/items/"), client.post("/items/", json={})]
        assert [answer.status_code for answer in answers] == [503, 503, 422]
    finally:
        child.stop()
    said = out.read_text() + "".join(answer.text for answer in answers)
    assert "the database cannot be reached" in said
    assert PASSWORD not in said


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def logs() -> Iterator[None]:
    """What `configure_logging` sets is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_library_that_logs_a_key_logs_its_id(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging(LoggingSettings.model_validate({"format": form, "level": "debug"}))
    each = made("reader", "read")
    logging.getLogger("somebody").debug("sent with %s", each.header)
    structlog.stdlib.get_logger("ours").info("sent", headers=each.header, key=each.key)
    try:
        raise RuntimeError(each.key)
    except RuntimeError:
        logging.getLogger("somebody").exception("it failed")
    said = capsys.readouterr().err
    assert each.secret not in said
    assert said.count(f"inv_{each.entry.id}_***") >= 4


# Lines that a client would like to write into the log


@pytest.mark.parametrize(
    "name",
    [
        b"a\r\nforged: line",
        b"a\nforged: line",
        b"a\rforged: line",
        b"a\r\n forged: line",
        b"a\0forged",
        b"\x1b[31mforged",
        b"\xe2\x80\xa8forged",
        b"a\x85forged",
        b"forged\x7f",
    ],
)
def test_the_name_of_a_request_forges_no_line_and_no_header(guarded: GuardedService, name: bytes) -> None:
    written = len(guarded.log())
    with guarded.raw() as connection:
        connection.send(
            b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Request-ID: "
            + name
            + b"\r\n\r\n"
        )
        answer = connection.read_until_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"forged" not in head
    assert b"forged" not in body
    if answer.startswith(b"HTTP/1.1 200"):
        (given,) = re.findall(rb"\r\nx-request-id: (\S+)", head)
        wait_until(lambda: given.decode() in guarded.log()[written:], "the request was logged")
    assert "forged" not in guarded.log()[written:]


@pytest.mark.parametrize("path", ["/%0d%0aforged", "/x%0aforged%1b[31m", "/%e2%80%a8forged", "/%c2%85forged"])
def test_a_path_forges_no_line(guarded: GuardedService, keyless: httpx.Client, path: str) -> None:
    line = guarded.line_of(keyless.get(path))
    assert line["path"].endswith(("forged", "forged\x1b[31m"))
    whole = [each for each in guarded.log().split("\n") if line["request_id"] in each]
    assert json.loads(whole[0]) == line
    assert not {"\r", "\x1b", "\x85", "\u2028"} & set(guarded.log())


# What commands print


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("command", ["config", "check", "migrate", "backup"])
def test_commands_print_no_password(command: str, url: str) -> None:
    arguments = [command, *(["copy.db"] if command == "backup" else [])]
    env = {"UOW_DATABASE__URL": URLS[url].format(port=free_port())}
    ended = CliRunner().invoke(app, arguments, env=env)
    assert ended.exit_code == {"config": 0, "backup": 1}.get(command, 69), ended.output
    assert "127.0.0.1" in ended.output
    assert PASSWORD not in ended.output


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_config_prints_the_program_that_prints_the_password_and_not_how_it_is_called(form: list[str]) -> None:
    command = f"{sys.executable} -m vault '--token={PASSWORD}'"
    env = {"UOW_DATABASE__URL": "postgresql://app@localhost/x", "UOW_DATABASE__PASSWORD_COMMAND": command}
    ended = CliRunner().invoke(app, ["config", *form], env=env)
    assert ended.exit_code == 0, ended.stderr
    assert f"{sys.executable} ***" in ended.stdout.replace("'***'", "***")
    assert "vault" not in ended.output
    assert PASSWORD not in ended.output
    alone = CliRunner().invoke(app, ["config", *form], env=env | {"UOW_DATABASE__PASSWORD_COMMAND": "true"})
    assert "true" in alone.stdout
    assert "true ***" not in alone.stdout


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_config_prints_no_hash_and_no_password(form: list[str], keys: Keys) -> None:
    entries = json.dumps([each.entry.model_dump() for each in keys.all])
    env = {
        "UOW_DATABASE__URL": f"postgresql://app:{PASSWORD}@localhost/x?password={PASSWORD}",
        "UOW_SECURITY__AUTHENTICATION": "api-keys",
        "UOW_SECURITY__KEYS": entries,
    }
    ended = CliRunner().invoke(app, ["config", *form], env=env)
    assert ended.exit_code == 0, ended.stderr
    said = ended.stdout + ended.stderr
    assert PASSWORD not in said
    for each in keys.all:
        assert each.entry.hash not in said
        assert each.entry.hash.rpartition(":")[2] not in said
        assert each.entry.name in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "{key}"),
        ("id", "{key}"),
        ("id", "{secret}"),
        ("hash", "{key}"),
        ("key", "{key}"),
        ("scopes", ["{key}"]),
    ],
)
def test_a_key_in_the_wrong_place_of_the_configuration_is_not_repeated(key: str, value: object) -> None:
    each = made("shop", "read")
    filled = json.loads(json.dumps(value).replace("{key}", each.key).replace("{secret}", each.secret))
    entry = {**each.entry.model_dump(), key: filled}
    Path("a.toml").write_text(
        '[security]\nauthentication = "api-keys"\n[[security.keys]]\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in entry.items()),
        encoding="utf-8",
    )
    ended = CliRunner().invoke(app, ["check", "--config", "a.toml"])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert re.match(rf"a\.toml, line \d: \[\[security\.keys\]\] key 1, {key}", ended.stderr)
    assert each.secret not in ended.stderr


# What `check` warns of


def checked(folder: Path, **sections: dict[str, object]) -> dict[str, object]:
    path = write_config(folder / "a.toml", {"database": {"url": "sqlite:///x.db"}, **sections})
    return security_of(path)


def security_of(path: Path) -> dict[str, object]:
    ended = CliRunner().invoke(app, ["check", "--json", "--config", str(path)])
    (found,) = [each for each in json.loads(ended.stdout) if each["what"] == "security"]
    assert found["ok"] is True
    assert (found["said"] == "in order") is not found["warning"]
    return dict(found)


def keyed(path: Path) -> Path:
    assert CliRunner().invoke(app, ["key", "--name", "shop", "--append", str(path)]).exit_code == 0
    return path


@pytest.mark.parametrize(
    ("host", "warned"),
    [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("::1", False), ("localhost", False)],
)
def test_check_warns_of_keys_that_everybody_on_the_way_can_read(
    tmp_path: Path, host: str, warned: bool
) -> None:
    path = write_config(
        tmp_path / "a.toml", {"server": {"host": host}, "database": {"url": "sqlite:///x.db"}}
    )
    assert (f"whoever reaches {host} may" in str(checked(tmp_path, server={"host": host})["said"])) is warned
    found = security_of(keyed(path))
    assert (f"keys come to {host} unencrypted: set [server] tls_certificate" in str(found["said"])) is warned


@pytest.mark.parametrize("form", URLS)
def test_check_warns_of_secrets_that_every_user_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    url = URLS[form].format(port=free_port())
    path = write_config(tmp_path / "a.toml", {"database": {"url": url}})
    path.chmod(0o644)
    said = str(security_of(path)["said"])
    assert f"{path} has a secret that every user of this machine may read: chmod o= {path}" in said
    path.chmod(0o640)
    assert security_of(path)["warning"] is False
    secret = tmp_path / "secrets" / "database__url"
    secret.parent.mkdir()
    secret.write_text(url, encoding="utf-8")
    secret.chmod(0o644)
    monkeypatch.setenv("UOW_SECRETS_DIR", str(secret.parent))
    assert f"{secret} has a secret" in str(security_of(path)["said"])
    monkeypatch.delenv("UOW_SECRETS_DIR")
    without = write_config(tmp_path / "b.toml", {"database": {"url": "sqlite:///x.db"}})
    without.chmod(0o644)
    assert security_of(without)["warning"] is False
    names = "postgresql+psycopg://app@127.0.0.1:1/x?passfile=/etc/inventory/pgpass"
    with_a_name = write_config(tmp_path / "c.toml", {"database": {"url": names}})
    with_a_name.chmod(0o644)
    assert security_of(with_a_name)["warning"] is False


@pytest.mark.parametrize(("mode", "warned"), [(0o666, True), (0o664, True), (0o646, True), (0o644, False)])
def test_check_warns_of_a_configuration_that_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, warned: bool
) -> None:
    """Who writes it decides who may use the service, and which program it runs for its password."""
    path = write_config(tmp_path / "a.toml", {"database": {"url": "sqlite:///x.db"}})
    path.chmod(mode)
    said = f"{path} may be written by others than its owner"
    assert (said in str(security_of(path)["said"])) is warned
    assert (f"chmod go-w {path}" in str(security_of(path)["said"])) is warned
    path.chmod(0o600)
    secret = tmp_path / "secrets" / "logging__level"
    secret.parent.mkdir()
    secret.write_text("info", encoding="utf-8")
    secret.chmod(mode & 0o662)
    monkeypatch.setenv("UOW_SECRETS_DIR", str(secret.parent))
    assert (f"{secret} may be written by" in str(security_of(path)["said"])) is warned


@on_one_engine
def test_answers_say_nothing_of_the_database(service: Service, client: httpx.Client) -> None:
    body = {"name": "Mug", "price": 1, "sku": "SECRETS-1"}
    first = client.post("/items/", json=body)
    again = client.post("/items/", json=body)
    assert (first.status_code, again.status_code) == (201, 409)
    for word in ("constraint", "items.sku", "INSERT", "sqlite", str(service.backend.database_url)):
        assert word not in again.text


async def test_a_failing_statement_is_not_repeated_to_the_client(tmp_path: Path) -> None:
    """A schema that is not there: the driver's message names the statement and its parameters."""
    section = {"url": f"sqlite:///{tmp_path}/a.db", "migrate_on_start": "never"}
    async with in_process(database=section) as (_, client):
        answer = await client.post("/items/", json={"name": "private", "price": 1})
    assert answer.status_code == 500
    for word in ("no such table", "INSERT", "private", "sqlite", os.fspath(tmp_path)):
        assert word not in answer.text
