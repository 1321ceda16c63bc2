"""The settings: config.toml, secret files, and the environment (`UOW_SERVER__PORT=9000`)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from api.idempotency import IdempotencySettings
from api.origin import Origin, Values, guess
from api.outbox import OutboxSettings
from api.secret_files import SecretFile, UnusableSecret, read_secret_files
from api.section import conflict
from api.sections import (
    DatabaseSettings,
    LoggingSettings,
    SecuritySettings,
    ServerSettings,
    ServiceSettings,
    UnitOfWorkSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "ConfigurationError",
    "DatabaseSettings",
    "IdempotencySettings",
    "LoggingSettings",
    "Origin",
    "OutboxSettings",
    "SecuritySettings",
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
SECRETS_DIR = "UOW_SECRETS_DIR"
# What systemd calls the folder of LoadCredential=.
CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"


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
    idempotency: IdempotencySettings = IdempotencySettings()
    outbox: OutboxSettings = OutboxSettings()
    security: SecuritySettings = SecuritySettings()
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
    """Defaults < the file < secret files < the environment < the command line's options.

    Without a path it is config.toml, if there is one. Raises `ConfigurationError`.
    """
    return load_with_origin(path, options)[0]


def load_with_origin(path: Path | None = None, options: Values | None = None) -> tuple[Settings, Origin]:
    """The same, and what knows where each value came from."""
    path = path or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    text, values = _read(path) if path else ("", {})
    secrets, variables = _secrets(), _variables()
    origin = Origin(
        model=Settings,
        path=path,
        text=text,
        values=values,
        options=options or {},
        variables=variables,
        secrets={key: secret.path for key, secret in secrets.items()},
    )
    texts = {key: secret.text for key, secret in secrets.items()}
    environment = {key: os.environ[name] for key, name in variables.items()}
    try:
        return Settings(**_merged(values, _parsed(texts), _parsed(environment), origin.options)), origin
    except ValidationError as error:
        raise ConfigurationError("\n".join(map(origin.message, _causes(error)))) from None


def _causes(error: ValidationError) -> list[Any]:
    """Each fault, but for those that are said of a list because of a fault inside of it."""
    faults = error.errors()
    deeper = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["loc"] not in deeper]


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}, line {line}: is not UTF-8: save it in this encoding") from None
    except ValueError as error:  # of a number with thousands of digits, too, which is TOML by its grammar
        raise ConfigurationError(f"{path}: is not TOML: {error}") from None


Key = tuple[str, str]


def _known() -> dict[str, Key]:
    """Each section and key by the name of its environment variable."""
    return {
        f"{PREFIX}{section}__{key}".upper(): (section, key)
        for section, info in Settings.model_fields.items()
        for key in type(info.default).model_fields
    }


def _variables() -> dict[Key, str]:
    """The environment variables that set something, as they are spelt."""
    known = _known()
    ours = [name for name in sorted(os.environ) if name.upper().startswith(PREFIX) and name != SECRETS_DIR]
    wrong = [
        f"environment variable {name}: unknown setting{guess(name.upper(), [*known, SECRETS_DIR])}"
        for name in ours
        if name.upper() not in known
    ]
    found: dict[Key, str] = {}
    for name in ours:
        other = found.setdefault(known[name.upper()], name) if name.upper() in known else name
        if other != name:
            wrong.append(f"environment variable {name}: is set as {other}, too: remove one of them")
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    return found


def _secrets() -> dict[Key, SecretFile]:
    variable = SECRETS_DIR if SECRETS_DIR in os.environ else CREDENTIALS_DIRECTORY
    folder = os.environ.get(variable)
    if folder is None:
        return {}
    try:
        return read_secret_files(Path(folder), _known(), PREFIX)
    except UnusableSecret as error:
        raise ConfigurationError(f"{error} (the folder is that of {variable})") from None


class _Texts(EnvSettingsSource):
    """Reads texts as the environment's, whatever they came from; a list is JSON."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._texts

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value  # the validation says what it should be, and knows its place


def _parsed(texts: Mapping[Key, str]) -> dict[str, Any]:
    names = {key: name.lower() for name, key in _known().items()}
    return _Texts({names[key]: text for key, text in texts.items()})()


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key. What is no section stays, for the validation to name it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, section in layer.items():
            if name not in merged:
                merged[name] = section
            elif isinstance(merged[name], Mapping):
                merged[name] = {**merged[name], **section}
    return merged
