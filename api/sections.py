"""The sections of the configuration: their keys, defaults and bounds. They are read by `api.settings`."""

from __future__ import annotations

import re
import shlex
import shutil
import ssl
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from api.keys import Key
from api.rules import Rule
from api.section import Section, conflict
from api.units import Age, Bytes, Seconds, WholeSeconds
from uow.engines.postgresql import unknown_to_asyncpg

# What a URL may begin with, and the package that then has to be there.
DRIVERS = {
    "sqlite": "aiosqlite",
    "sqlite+aiosqlite": "aiosqlite",
    "postgresql": "asyncpg",
    "postgresql+asyncpg": "asyncpg",
    "postgresql+psycopg": "psycopg",
}

# What libpq takes for a secret in the query of a URL; asyncpg knows the first.
SECRET_WORDS = ("password", "sslpassword", "oauth_client_secret")


class ServiceSettings(Section):
    title: str = Field(default="Inventory", min_length=1, description="The name in the documentation.")
    require_if_match: bool = Field(
        default=False, description="Whether an edit has to say which state of its resource it has seen."
    )


class ServerSettings(Section):
    host: str = Field(default="127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port; 0 takes any that is free.")
    unix_socket: str = Field(
        default="", description="The path of a Unix socket to listen on; host and port are then unused."
    )
    workers: int = Field(default=1, ge=1, le=256, description="Processes that serve.")
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="The proxies whose X-Forwarded headers are believed: addresses, networks, or *.",
    )
    tls_certificate: str = Field(
        default="", description="The file of the certificate and its chain, in PEM; empty is no TLS."
    )
    tls_key: str = Field(default="", description="The file of the certificate's private key, in PEM.")
    reload: bool = Field(
        default=False, description="Whether to start anew when a source file changes; for development."
    )
    keep_alive_timeout: WholeSeconds = Field(
        default=5,
        ge=1,
        description="The time until a connection is closed on which no whole head of a request comes.",
    )
    max_connections: int = Field(
        default=512, ge=1, description="Connections of each worker at most; more are answered with 503."
    )
    graceful_shutdown_timeout: WholeSeconds = Field(
        default=30,
        ge=0,
        description="The time that running requests have to finish after a stop signal.",
    )
    max_header_size: Bytes = Field(
        default=32 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="The size of a request line with its headers; more is answered with 431.",
    )
    max_body_size: Bytes = Field(
        default=1024 * 1024, ge=1, description="The size of a request's body; more is answered with 413."
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, proxies: str) -> str:
        for proxy in filter(None, map(str.strip, proxies.split(","))):
            if proxy != "*":
                try:
                    ip_network(proxy)
                except ValueError:
                    raise ValueError(f"{proxy} is no address, no network and not *") from None
        return proxies

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.reload and self.workers > 1:
            raise conflict("reload", f"is for one process, and [server] workers is {self.workers}")
        if self.tls_certificate and not self.tls_key:
            raise conflict("tls_certificate", "needs [server] tls_key, the file of its private key")
        if self.tls_key and not self.tls_certificate:
            raise conflict("tls_key", "needs [server] tls_certificate, the file of its certificate")
        if self.tls_certificate:
            self._read_tls()
        if self.unix_socket and not Path(self.unix_socket).absolute().parent.is_dir():
            raise conflict("unix_socket", f"there is no folder {Path(self.unix_socket).absolute().parent}")
        return self

    def _read_tls(self) -> None:
        for key in ("tls_certificate", "tls_key"):
            try:
                Path(getattr(self, key)).read_bytes()
            except OSError as error:
                raise conflict(key, f"{getattr(self, key)} cannot be read: {error.strerror}") from None
        try:
            # A password is never asked for: nobody may be there to type it.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.tls_certificate, self.tls_key, password=lambda: ""
            )
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise conflict("tls_certificate", f"cannot be used with [server] tls_key: {reason}") from None


class DatabaseSettings(Section):
    url: str = Field(
        default="sqlite:///inventory.db",
        repr=False,
        description="SQLite or PostgreSQL; a relative path begins where the service is started.",
    )
    application_name: str = Field(
        default="inventory", max_length=63, description="What PostgreSQL calls the connections."
    )
    password_file: str = Field(
        default="", description="A file with the password, read for each new connection."
    )
    password_command: str = Field(
        default="",
        repr=False,
        description="A command that prints the password, run for each new connection.",
    )
    pooler: bool = Field(
        default=False, description="Whether a pooler such as PgBouncer stands before PostgreSQL."
    )
    ask_outcome: bool = Field(
        default=True,
        description="Whether PostgreSQL is asked what became of a COMMIT whose answer was lost.",
    )
    pool_size: int = Field(default=10, ge=1, description="Connections at most, of each engine.")
    pool_overflow: int = Field(
        default=0, ge=0, description="Connections beyond pool_size in a rush, closed after it."
    )
    pool_timeout: Seconds = Field(
        default=10.0,
        gt=0,
        description="The time that a request waits for a connection before it gets 503.",
    )
    max_waiting: int = Field(
        default=100,
        ge=0,
        description="How many requests wait for a connection in each worker; the next one gets 503 at once.",
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
        if find_spec(package := DRIVERS[driver]) is None:
            raise ValueError(f"{driver} needs the package {package}: pip install {package}")
        if package == "asyncpg" and (unknown := unknown_to_asyncpg(make_url(url))):
            raise ValueError(unknown)
        return url

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.password_file and self.password_command:
            raise conflict("password_command", "cannot be set beside [database] password_file; take one away")
        for key in ("password_file", "password_command"):
            if getattr(self, key) and self._has_password:
                raise conflict(key, "cannot be set beside a password in [database] url; take one away")
        for key in ("password_file", "password_command", "pooler"):
            if getattr(self, key) and self.is_sqlite:
                raise conflict(key, "is for PostgreSQL, and [database] url is SQLite")
        try:
            words = shlex.split(self.password_command)
        except ValueError as error:
            raise conflict("password_command", f"is no command: {error}") from None
        if words and shutil.which(words[0]) is None:
            # NAME=secret program: no shell is there that would set the variable.
            program, variable, _ = words[0].partition("=")
            hint = f"=...; for a variable write env {program}=... and the program" if variable else ""
            raise conflict("password_command", f"there is no program {program}{hint}")
        return self

    @property
    def _has_password(self) -> bool:
        url = make_url(self.url)
        return url.password is not None or "password" in url.query

    @property
    def url_is_secret(self) -> bool:
        """Whether there is something in the URL that opens a door."""
        url = make_url(self.url)
        return bool(url.password) or any(url.query.get(word) for word in SECRET_WORDS)

    @property
    def shown(self) -> str:
        """The URL without password and parameters, for people."""
        return make_url(self.url).set(query={}).render_as_string(hide_password=True)

    @property
    def shown_command(self) -> str:
        """The program of password_command: what it is called with may be a secret."""
        words = shlex.split(self.password_command)
        return shlex.join([*words[:1], *(["***"] if words[1:] else [])])

    @property
    def is_sqlite(self) -> bool:
        return make_url(self.url).get_backend_name() == "sqlite"

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database; None for one in memory, and for PostgreSQL."""
        return None if self.in_memory or not self.is_sqlite else Path(make_url(self.url).database or "")

    @property
    def in_memory(self) -> bool:
        url = make_url(self.url)
        return self.is_sqlite and (
            url.database in (None, "", ":memory:")
            or "mode=memory" in (url.database or "")
            or url.query.get("mode") == "memory"
        )

    def pool(self) -> dict[str, Any]:
        """The options of the engines' pools."""
        return {
            "pool_size": self.pool_size,
            "max_overflow": self.pool_overflow,
            "pool_timeout": self.pool_timeout,
        }


class UnitOfWorkSettings(Section):
    settle_timeout: Seconds = Field(
        default=10.0,
        gt=0,
        description="The time that a COMMIT or ROLLBACK may take once it was sent.",
    )
    stream_timeout: Seconds = Field(
        default=300.0,
        gt=0,
        description="The time that a read-only unit stays open for an answer that streams.",
    )
    deadline: Seconds = Field(
        default=0.0,
        ge=0,
        description="The time that a request may take until its answer begins; 0 is no limit.",
    )
    retry_attempts: int = Field(
        default=5,
        ge=1,
        le=100,
        description="How often a request is run at most, when others were in its way; 1 is never again.",
    )
    retry_seconds: Seconds = Field(
        default=10.0,
        ge=0,
        description="The time for which a request is run again while the database is away.",
    )
    replay_body_limit: Bytes = Field(
        default=1024 * 1024, ge=1, description="The size up to which a body is kept for another attempt."
    )
    rules: tuple[Rule, ...] = Field(default=(), description="What single routes have other than the rest.")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for number, rule in enumerate(self.rules):
            if rule.retry and self.retry_attempts == 1:
                reason = "cannot be true while [unit_of_work] retry_attempts is 1"
                raise conflict(("rules", number, "retry"), reason)
        return self


_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"https?://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def listed(value: str) -> list[str]:
    """The parts of a setting that has commas between them."""
    return [*filter(None, map(str.strip, value.split(",")))]


class SecuritySettings(Section):
    authentication: Literal["none", "api-keys"] = Field(
        default="none", description="Whether a request needs a key."
    )
    keys: tuple[Key, ...] = Field(default=(), description="The keys; `python -m api key` makes them.")
    public_docs: bool = Field(
        default=True, description="Whether /docs and /openapi.json are shown without a key."
    )
    trusted_hosts: str = Field(
        default="*", description="The values of Host that are answered: names, *.example.com, or *."
    )
    cors_origins: str = Field(
        default="", description="The sites whose pages may call the service: origins, or *."
    )
    hsts_max_age: Age = Field(
        default=0, ge=0, description="How long browsers are to insist on TLS; 0 does not ask for it."
    )

    @field_validator("trusted_hosts")
    @classmethod
    def _are_hosts(cls, hosts: str) -> str:
        if not listed(hosts):
            raise ValueError("names no host; * is any")
        for host in listed(hosts):
            if host != "*" and not _HOST.fullmatch(host):
                raise ValueError(f"{host} is no name of a host (without port), no *.example.com and not *")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: str) -> str:
        for origin in listed(origins):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is no origin such as https://shop.example.com, and not *")
        if "*" in listed(origins) and len(listed(origins)) > 1:
            raise ValueError("* is any origin: name it alone, or name the others without it")
        return origins

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.authentication == "api-keys" and not self.keys:
            raise conflict("authentication", "needs a [[security.keys]]: run `python -m api key --name NAME`")
        if self.authentication == "none" and self.keys:
            raise conflict(
                "authentication", "is none, and there are [[security.keys]], which nobody asks for"
            )
        for attribute in ("name", "id"):
            seen: dict[str, int] = {}
            for number, key in enumerate(self.keys):
                value = getattr(key, attribute)
                if value in seen:
                    reason = f"{value} is that of key {seen[value] + 1}, too; each key has its own"
                    raise conflict(("keys", number, attribute), reason)
                seen[value] = number
        return self


class LoggingSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level that is written."
    )
    format: Literal["console", "json"] = Field(default="console", description="For people or machines.")
    slow_unit: Seconds = Field(
        default=1.0, ge=0, description="The time from which on a unit of work is a warning; 0 is off."
    )
    long_transaction: Seconds = Field(
        default=10.0,
        ge=0,
        description="The time after which a unit that holds its connection is a warning; 0 is off.",
    )
