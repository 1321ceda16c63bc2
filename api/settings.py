"""The settings: config.toml, and above it the environment (`UOW_SERVER__PORT=9000`)."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from api.sections import (
    CONFLICT,
    DatabaseSettings,
    LoggingSettings,
    ServerSettings,
    ServiceSettings,
    UnitOfWorkSettings,
    conflict,
)

__all__ = [
    "DEFAULT_FILE",
    "ConfigurationError",
    "DatabaseSettings",
    "LoggingSettings",
    "Origin",
    "ServerSettings",
    "ServiceSettings",
    "Settings",
    "UnitOfWorkSettings",
    "Values",
    "load_settings",
    "load_with_origin",
]

DEFAULT_FILE = Path("config.toml")
PREFIX = "UOW_"

Values = Mapping[str, Mapping[str, object]]


class ConfigurationError(Exception):
    """The service cannot start so: the message names each wrong key and its place."""


class Settings(BaseSettings):
    """Everything that can be set. Made by `load_settings`; `Settings()` alone is the defaults."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    service: ServiceSettings = ServiceSettings()
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    unit_of_work: UnitOfWorkSettings = UnitOfWorkSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _one_memory_one_process(self) -> Self:
        if self.database.in_memory and (self.server.workers > 1 or self.server.reload):
            key = "workers" if self.server.workers > 1 else "reload"
            raise conflict(
                key,
                "each process would have a database in memory of its own; set [database] url to a file",
                section="server",
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load_settings` reads the environment itself, so that it can say where a value is from.
        return (init_settings,)


def load_settings(path: Path | None = None, options: Values | None = None) -> Settings:
    """Defaults < the file < the environment < the command line's options.

    Without a path it is config.toml, if there is one. Raises `ConfigurationError`.
    """
    return load_with_origin(path, options)[0]


def load_with_origin(path: Path | None = None, options: Values | None = None) -> tuple[Settings, Origin]:
    """The same, and what knows where each value came from."""
    origin = Origin.of(path or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None), options or {})
    if unknown := _unknown_variables():
        raise ConfigurationError("\n".join(unknown))
    environment = EnvSettingsSource(Settings)()
    try:
        return Settings(**_merged(origin.values, environment, origin.options)), origin
    except ValidationError as error:
        raise ConfigurationError(
            "\n".join(origin.message(fault["loc"], fault) for fault in error.errors())
        ) from None


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section}__{key}".upper()


def _known() -> dict[str, list[str]]:
    return {name: list(type(info.default).model_fields) for name, info in Settings.model_fields.items()}


def _unknown_variables() -> list[str]:
    known = [_variable(section, key) for section, keys in _known().items() for key in keys]
    return [
        f"environment variable {name}: unknown setting{_guess(name.upper(), known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


def _guess(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key. What is no section stays, for the validation to name it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, section in layer.items():
            both = isinstance(section, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = {**merged[name], **section} if both else section
    return merged


@dataclass(frozen=True, slots=True)
class Origin:
    """The file and the options that values came from, to name the place of a wrong one."""

    path: Path | None
    text: str
    values: Mapping[str, Any]
    options: Values = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None, options: Values) -> Origin:
        if path is None:
            return cls(None, "", {}, options)
        try:
            text = path.read_text(encoding="utf-8")
            return cls(path, text, tomllib.loads(text), options)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path}: is not UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path}: is not TOML: {error}") from None

    def message(self, location: tuple[int | str, ...], fault: Mapping[str, Any]) -> str:
        if fault["type"] == CONFLICT:  # of two keys; the fault knows which of them is to be changed
            location = (fault["ctx"]["section"] or location[0], fault["ctx"]["key"])
        section, key = str(location[0]), ".".join(str(part) for part in location[1:])
        name = f"[{section}] {key}" if key else f"[{section}]"
        return f"{self._place(section, key)}: {name}: {_reason(section, key, fault)}"

    def of_value(self, section: str, key: str) -> str:
        """Where the value of a key came from, in words."""
        in_file = key in self.values.get(section, {})
        if in_file or self._place(section, key) != str(self.path):
            return self._place(section, key)
        return "default"

    def _place(self, section: str, key: str) -> str:
        if key in self.options.get(section, {}):
            return f"option --{key}"
        variable = _variable(section, key)
        if variable in map(str.upper, os.environ):
            return f"environment variable {variable}"
        line = self._line(section, key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def _line(self, section: str, key: str) -> int | None:
        """The line of a key, or of the section where no key is named; None if it is hard to say."""
        current = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
                current = header[1]
                if not key and current == section:
                    return number
                continue
            name = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*[.=]", line)
            if name and (current, name[1]) in {(section, key), ("", section)}:
                return number
        return None


def _reason(section: str, key: str, fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        known = _known()
        if key:
            return f"unknown key{_guess(key, known[section])}"
        return f"unknown section{_guess(section, known)}"
    if fault["type"] in {"model_type", "model_attributes_type"}:
        return "is a section, not a value"
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return reason if key == "url" or fault["type"] == CONFLICT else f"{reason} (it is {fault['input']!r})"
