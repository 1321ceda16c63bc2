"""`config` and `routes`: what is in force, and where it came from."""

from __future__ import annotations

import json
from typing import Any

import typer

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
    """Print the settings that a start would have, and where each came from. Passwords are hidden."""
    settings, origin = read_settings(config)
    found = effective(settings, origin)
    if as_json:
        echo_json(found)
        return
    for number, (section, keys) in enumerate(found.items()):
        typer.echo(f"{chr(10) if number else ''}[{section}]")
        echo_table([(f"{key} = {json.dumps(of['value'])}", f"# {of['from']}") for key, of in keys.items()])


def effective(settings: Settings, origin: Origin) -> dict[str, dict[str, dict[str, Any]]]:
    """Each section's keys with their values and origins; without what is secret in them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in type(settings).model_fields:
        values = getattr(settings, section).model_dump(mode="json")
        if section == "database":
            values["url"] = settings.database.shown
        found[section] = {
            key: {"value": value, "from": origin.of_value(section, key)} for key, value in values.items()
        }
    return found


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
