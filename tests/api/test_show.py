"""`python -m api config` and `routes`: what is in force, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from typer.testing import CliRunner

from api.app import create_app
from api.cli import app
from api.routes import Option, Route, routes_of
from api.settings import Settings, load_settings
from tests.support.server import ROOT
from uow import unit_options


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(*arguments: str, **env: str) -> str:
    ended = CliRunner().invoke(app, list(arguments), env=env)
    assert (ended.exit_code, ended.stderr) == (0, "")
    return ended.stdout


def told_json(*arguments: str, **env: str) -> Any:
    return json.loads(told(*arguments, "--json", **env))


def test_config_says_where_each_value_came_from() -> None:
    Path("config.toml").write_text("[server]\nport = 1\n\n[database]\npool_size = 3\n", encoding="utf-8")
    found = told_json("config", UOW_DATABASE__POOL_SIZE="4")
    assert found["server"]["host"] == {"value": "127.0.0.1", "from": "default"}
    assert found["server"]["port"] == {"value": 1, "from": "config.toml, line 2"}
    assert found["database"]["pool_size"] == {
        "value": 4,
        "from": "environment variable UOW_DATABASE__POOL_SIZE",
    }


def test_a_key_has_its_line_however_it_is_spelt() -> None:
    Path("config.toml").write_text("server = { port = 1 }\n", encoding="utf-8")
    assert told_json("config")["server"]["port"] == {"value": 1, "from": "config.toml, line 1"}
    Path("config.toml").write_text('["server"]\n"port" = 1\n', encoding="utf-8")
    assert told_json("config")["server"]["port"] == {"value": 1, "from": "config.toml, line 2"}


def test_config_prints_every_key_and_nothing_else() -> None:
    found = told_json("config")
    values = {name: {key: of["value"] for key, of in keys.items()} for name, keys in found.items()}
    assert values == Settings().model_dump(mode="json")
    assert {of["from"] for keys in found.values() for of in keys.values()} == {"default"}


def test_what_config_prints_is_a_configuration(tmp_path: Path) -> None:
    """The text for people is TOML, with the places as comments; lists of tables are tables."""
    Path("config.toml").write_text(RULES, encoding="utf-8")
    printed = told("config", UOW_SERVER__PORT="9")
    (tmp_path / "printed.toml").write_text(printed, encoding="utf-8")
    again = load_settings(tmp_path / "printed.toml")
    assert again.server.port == 9
    assert again.unit_of_work == load_settings().unit_of_work
    assert "port = 9" in printed
    assert "[[unit_of_work.rules]]  # config.toml, line 5\n" in printed


RULES = """
[unit_of_work]
stream_timeout = "90s"

[[unit_of_work.rules]]
match = "* /items/*"
stream_timeout = "500ms"
commit_on = [404]
retry = false

[[unit_of_work.rules]]
match = "GET /items/"
isolation = "serializable"
stream_timeout = 1
"""


def test_routes_says_which_rule_has_set_an_option() -> None:
    Path("config.toml").write_text(RULES, encoding="utf-8")
    found = {f"{route['method']} {route['path']}": route["unit"] for route in told_json("routes")}
    assert found["GET /items/"]["stream_timeout"] == {"value": "1s", "from": "rule 2"}
    assert found["GET /items/"]["isolation"] == {"value": "serializable", "from": "rule 2"}
    assert found["GET /items/"]["commit_on"] == {"value": [404], "from": "rule 1"}
    assert found["GET /items/"]["read_only"] == {"value": True, "from": "default for GET"}
    assert found["POST /items/"]["stream_timeout"] == {"value": "500ms", "from": "rule 1"}
    assert found["GET /orders/"]["stream_timeout"] == {"value": "90s", "from": "default for GET"}
    assert found["POST /items/"]["retry"] == {"value": False, "from": "rule 1"}
    assert found["POST /orders/"]["retry"] == {"value": True, "from": "default"}
    assert "isolation=serializable (rule 2)" in told("routes")


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_config_hides_passwords(form: list[str]) -> None:
    url = "postgresql://user:secret@localhost/x?password=secret"
    said = told("config", *form, UOW_DATABASE__URL=url)
    assert "secret" not in said
    assert "postgresql://user:***@localhost/x" in said


def test_routes_prints_each_route_with_the_options_of_its_unit() -> None:
    lines = {" ".join(line.split()[:2]): line for line in told("routes").splitlines()}
    assert "read_only (default for GET)" in lines["GET /items/"]
    assert "read_only" not in lines["POST /items/"]
    as_json = {f"{route['method']} {route['path']}": route["unit"] for route in told_json("routes")}
    assert as_json.keys() == lines.keys()
    assert as_json["POST /orders/"]["read_only"] == {"value": False, "from": "default"}


def test_routes_knows_what_a_decorator_has_set_also_where_it_is_the_default() -> None:
    router = APIRouter()

    @router.post("/counted")
    @unit_options(isolation="serializable", commit_on={401}, read_only=False)
    async def counted() -> None: ...

    service = create_app(Settings())
    service.include_router(router, prefix="/deep")
    (route,) = [each for each in routes_of(service) if each.path == "/deep/counted"]
    assert route == Route(
        "POST",
        "/deep/counted",
        (
            Option("read_only", value=False, origin="decorator"),
            Option("isolation", value="serializable", origin="decorator"),
            Option("commit_on", value=[401], origin="decorator"),
            Option("snapshot", value=False, origin="default"),
            Option("stream_timeout", value=None, origin="default"),
            Option("retry", value=True, origin="default"),
            Option("deadline", value=None, origin="default"),
        ),
    )


def test_routes_and_openapi_know_the_same() -> None:
    service = create_app(Settings())
    documented = {
        (method.upper(), path) for path, methods in service.openapi()["paths"].items() for method in methods
    }
    assert documented <= {(route.method, route.path) for route in routes_of(service)}


@pytest.mark.parametrize("command", ["config", "routes"])
def test_nothing_is_made_by_looking(tmp_path: Path, command: str) -> None:
    told(command)
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_documented_and_has_examples() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    groups = [group.typer_instance for group in app.registered_groups]
    commands = [command for group in groups if group for command in group.registered_commands]
    names = [command.name or command.callback.__name__ for command in commands if command.callback]
    assert len(names) >= 4
    for name in names:
        assert f"| `{name}` |" in page or f"| `{name} " in page
        assert "Examples:" in told(name, "--help")
