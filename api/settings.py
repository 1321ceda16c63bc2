"""The settings: config.toml, and above it the environment (`UOW_SERVER__PORT=9000`)."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

DEFAULT_FILE = Path("config.toml")
PREFIX = "UOW_"
DRIVERS = {"sqlite", "sqlite+aiosqlite", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"}

Values = Mapping[str, Mapping[str, object]]


class ConfigurationError(Exception):
    """The service cannot start so: the message names each wrong key and its place."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object) -> object:
        # The environment brings numbers as text, so text is read; true would be read as 1.
        if isinstance(value, bool):
            raise ValueError("true and false are no values of this setting")
        return value


class ServiceSettings(Section):
    title: str = Field(default="Inventory", min_length=1, description="The name in the documentation.")


class ServerSettings(Section):
    host: str = Field(default="127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port; 0 takes any that is free.")
    keep_alive_timeout: int = Field(
        default=5, ge=1, description="Seconds until a connection without a request is closed."
    )
    graceful_shutdown_timeout: int = Field(
        default=30,
        ge=0,
        description="Seconds that running requests have to finish after a stop signal.",
    )


class DatabaseSettings(Section):
    url: str = Field(
        default="sqlite:///inventory.db",
        repr=False,
        description="SQLite or PostgreSQL; a relative path begins where the service is started.",
    )
    pool_size: int = Field(default=10, ge=1, description="Connections at most, of each engine.")
    pool_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that a request waits for a connection before it gets 503.",
    )
    migrate_on_start: Literal["auto", "always", "never"] = Field(
        default="auto", description="Whether a start migrates; auto: SQLite, and what never was."
    )

    @field_validator("url")
    @classmethod
    def _is_ours(cls, url: str) -> str:
        # Without the URL itself in the message: it may hold a password.
        try:
            driver = make_url(url).drivername
        except (ArgumentError, ValueError):
            raise ValueError("not a database URL such as sqlite:///inventory.db") from None
        if driver not in DRIVERS:
            raise ValueError(f"{driver} is not one of {', '.join(sorted(DRIVERS))}")
        return url

    @property
    def shown(self) -> str:
        """The URL without password and parameters, for people."""
        return make_url(self.url).set(query={}).render_as_string(hide_password=True)

    def pool(self) -> dict[str, Any]:
        """The options of the engines; `pool_size` is a bound, so nothing overflows it."""
        return {
            "pool_size": self.pool_size,
            "max_overflow": 0,
            "pool_timeout": self.pool_timeout,
        }


class UnitOfWorkSettings(Section):
    settle_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds that a COMMIT or ROLLBACK may take once it was sent.",
    )


class LoggingSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level that is written."
    )
    format: Literal["console", "json"] = Field(default="console", description="For people or machines.")


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
    origin = Origin.of(path or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None), options or {})
    if unknown := _unknown_variables():
        raise ConfigurationError("\n".join(unknown))
    environment = EnvSettingsSource(Settings)()
    try:
        return Settings(**_merged(origin.values, environment, origin.options))
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
        section, key = str(location[0]), ".".join(str(part) for part in location[1:])
        name = f"[{section}] {key}" if key else f"[{section}]"
        return f"{self._place(section, key)}: {name}: {_reason(section, key, fault)}"

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
    return reason if key == "url" else f"{reason} (it is {fault['input']!r})"
