"""`key`: makes an API key, shows it once, and keeps nothing but its entry for the configuration."""

from __future__ import annotations

import json
import os
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from api.commands.common import AsJson, echo_json, examples, fail
from api.keys import Key, hash_of, new_key
from api.origin import Origin
from api.settings import ConfigurationError, Settings, load_settings

commands = typer.Typer()


class Scope(StrEnum):
    """What a key may do."""

    READ = "read"
    WRITE = "write"


Name = Annotated[str, typer.Option(help="Who gets the key; the log says it of each request.")]
Scopes = Annotated[
    list[Scope],
    typer.Option("--scope", help="read: GET, HEAD, OPTIONS; write: all else. Give it twice for both."),
]
Append = Annotated[
    Path | None,
    typer.Option(help="Write the entry to the end of this configuration, and print the key alone."),
]


@commands.command(
    epilog=examples(
        "python -m api key --name dashboard",
        "python -m api key --name shop --scope read --scope write --append config.toml",
        "python -m api key --name shop --json | jq -r .key",
    )
)
def key(
    name: Name,
    scope: Scopes = [Scope.READ],  # noqa: B006 - typer reads it, and changes nothing
    append: Append = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key.

    It is shown this once. The configuration gets its salted hash, from which nobody can get the key.
    """
    key_id, made = new_key()
    try:
        entry = Key(name=name, id=key_id, scopes=tuple(each.value for each in scope), hash=hash_of(made))
    except ValidationError as error:
        fault = error.errors()[0]
        raise typer.BadParameter(
            str(fault["msg"]).removeprefix("Value error, "),
            param_hint=f"--{str(fault['loc'][0]).removesuffix('s')}",
        ) from None
    if append:
        _append(append, entry)
    if as_json:
        echo_json({"key": made, "entry": entry.model_dump(mode="json")})
        return
    typer.echo(f"{made}\n")
    typer.echo(f"This is the key of {name}, shown this once. A client sends it as Authorization: Bearer KEY.")
    if append is None:
        typer.echo('The configuration, with [security] authentication = "api-keys", gets its entry:\n')
        typer.echo(block_of(entry), nl=False)
    else:
        typer.echo(f"{append} has its entry; a service that runs reads it at its next start.")


def block_of(entry: Key) -> str:
    """The entry in TOML; JSON's texts and lists are TOML's as well."""
    values = entry.model_dump(mode="json")
    return "\n".join(["[[security.keys]]", *(f"{name} = {json.dumps(values[name])}" for name in values), ""])


def _append(path: Path, entry: Key) -> None:
    """Add the entry, if the file is then in order, and see to it that the next start asks for keys.

    A start is refused where there are keys that nobody asks for. A file that says nothing of [security]
    is given what it needs; where somebody has written that section, it is theirs to change.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        asked = _checked(path, text + gap + block_of(entry)).get("authentication")
        silent = asked is None and _is_toml(text + gap + _SECTION + block_of(entry))
        # What is there is added to: the file keeps its owner and its mode. A new one is nobody else's.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(gap + (_SECTION if silent else "") + block_of(entry))
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{path}: cannot be added to: {error}") from None
    # On standard error: what is on the other may be read by a program.
    if silent:
        typer.echo(
            f"{path} was given [security] {_SWITCH} as well: from its next start on, a service that reads"
            " it wants a key with each request.",
            err=True,
        )
    elif asked != "api-keys" and not _is_set_elsewhere(path):
        reason = f"nobody asks for the key yet, and a start is refused until it is set: write {_SWITCH}"
        place = Origin(model=Settings, path=path, text=text)
        typer.echo(place.wrong(("security", "authentication"), reason), err=True)


_SWITCH = 'authentication = "api-keys"'
_SECTION = f"[security]\n{_SWITCH}\n\n"


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _is_set_elsewhere(path: Path) -> bool:
    """Whether a variable or a secret file has what the file lacks."""
    try:
        return load_settings(path).security.authentication == "api-keys"
    except ConfigurationError:
        return False


def _checked(path: Path, text: str) -> dict[str, Any]:
    """The section as it will be; what would stop a start ends the command, and nothing is written."""
    try:
        security = tomllib.loads(text).get("security", {})
    except tomllib.TOMLDecodeError as error:
        raise fail(
            f"{path}: cannot be added to: it would not be TOML: {error}. Keys that are there have to be"
            " tables, [[security.keys]], and not a list"
        ) from None
    try:
        # Whether keys are asked for yet may be decided later.
        Settings.model_validate({"security": {**security, "authentication": "api-keys"}})
    except ValidationError as error:
        origin = Origin(model=Settings, path=path, text=text)
        wrong = "\n".join(origin.message(dict(fault)) for fault in error.errors())
        raise fail(f"Nothing was written, because a start would say then:\n{wrong}") from None
    return dict(security)
