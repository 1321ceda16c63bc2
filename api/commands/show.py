"""`config` and `routes`: what is in force, and where it came from."""

from __future__ import annotations

import json
from typing import Any

import typer
from pydantic import BaseModel

from api.app import create_app
from api.commands.common import AsJson, Config, echo_json, echo_table, examples, read_settings
from api.routes import routes_of
from api.settings import Origin, Settings

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "python -m api config",
        "python -m api config --config production.toml --json",
        "UOW_SERVER__PORT=9000 python -m api config | grep port",
    )
)
def config(config: Config = None, as_json: AsJson = False) -> None:
    """Print the settings that a start would have, and where each came from. Passwords are hidden.

    So is what `password_command` is called with.
    """
    settings, origin = read_settings(config)
    found = effective(settings, origin)
    if as_json:
        echo_json(found)
        return
    for number, (section, keys) in enumerate(found.items()):
        typer.echo(f"{chr(10) if number else ''}[{section}]")
        plain = {key: of for key, of in keys.items() if not _is_tables(of["value"])}
        echo_table([(f"{key} = {json.dumps(of['value'])}", f"# {of['from']}") for key, of in plain.items()])
        for key in keys.keys() - plain.keys():
            for index, table in enumerate(keys[key]["value"]):
                typer.echo(f"\n[[{section}.{key}]]  # {origin.place(section, key, index)}")
                echo_table([(f"{name} = {json.dumps(value)}",) for name, value in table.items()])


def effective(settings: Settings, origin: Origin) -> dict[str, dict[str, dict[str, Any]]]:
    """Each section's keys with their values and origins; without what is secret in them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in type(settings).model_fields:
        values = _shown(getattr(settings, section))
        for key in values:
            if origin.is_from_secret(section, key):
                values[key] = _HIDDEN
        if section == "database":
            values["url"] = settings.database.shown
            if not origin.is_from_secret(section, "password_command"):
                values["password_command"] = settings.database.shown_command
        found[section] = {
            key: {"value": value, "from": origin.of_value(section, key)} for key, value in values.items()
        }
    return found


_HIDDEN = "***"


def _shown(of: BaseModel) -> dict[str, Any]:
    """The values of a section, or of a table in one; of a field that is secret nothing is shown."""
    values = of.model_dump(mode="json", exclude_none=True)
    for name, info in type(of).model_fields.items():
        given = getattr(of, name)
        if not info.repr:
            values[name] = _HIDDEN
        elif isinstance(given, tuple) and given and isinstance(given[0], BaseModel):
            values[name] = [_shown(each) for each in given]
    return values


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


@commands.command(
    epilog=examples("python -m api routes", "python -m api routes --json", "python -m api routes | grep POST")
)
def routes(config: Config = None, as_json: AsJson = False) -> None:
    """Print each route, the options of its unit of work, and where each option came from.

    An option that is not named is off.
    """
    settings, _ = read_settings(config)
    found = routes_of(create_app(settings))
    if as_json:
        echo_json(
            [
                {
                    "method": route.method,
                    "path": route.path,
                    "unit": {
                        option.name: {"value": option.value, "from": option.origin}
                        for option in route.options
                    },
                }
                for route in found
            ]
        )
        return
    echo_table(
        [
            (route.method, route.path, ", ".join(str(option) for option in route.options if option.is_set))
            for route in found
        ]
    )
