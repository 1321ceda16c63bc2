"""What `check` says of who can listen to the service and read its files. It warns: a proxy may see to it."""

from __future__ import annotations

import stat
from ipaddress import ip_address
from pathlib import Path

from api.settings import Origin, Settings


def exposures(settings: Settings, origin: Origin) -> list[str]:
    """What others than the operator may see or do, each with what to do about it."""
    return [*_network(settings), *_readable(settings, origin), *_writable(origin)]


def _network(settings: Settings) -> list[str]:
    server = settings.server
    if server.unix_socket or _is_loopback(server.host):
        return []
    if settings.security.authentication == "none":
        remedy = "make keys with `python -m api key`"
        return [f"whoever reaches {server.host} may read and change everything: {remedy}"]
    if not server.tls_certificate:
        remedy = "set [server] tls_certificate, or listen on 127.0.0.1 behind a proxy that has TLS"
        return [f"keys come to {server.host} unencrypted: {remedy}"]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _readable(settings: Settings, origin: Origin) -> list[str]:
    destinations = settings.outbox.destinations
    files = [settings.server.tls_key, settings.database.password_file, *map(str, origin.secrets.values())]
    files += [each.secret_file for each in destinations]
    in_file = str(origin.path) in origin.of_value("database", "url")
    signed = any(each.secrets for each in destinations)
    signed = signed and str(origin.path) in origin.of_value("outbox", "destinations")
    if origin.path and (signed or (in_file and settings.database.url_is_secret)):
        files.append(str(origin.path))
    return [
        f"{file} has a secret that every user of this machine may read: chmod o= {file}"
        for file in files
        if file and _mode(Path(file)) & stat.S_IROTH
    ]


def _writable(origin: Origin) -> list[str]:
    """Who writes a setting decides who may use the service, and which program is run for a password."""
    files = [*([origin.path] if origin.path else []), *origin.secrets.values()]
    return [
        f"{file} may be written by others than its owner, who would then decide what the service does:"
        f" chmod go-w {file}"
        for file in files
        if _mode(file) & (stat.S_IWGRP | stat.S_IWOTH)
    ]


def _mode(file: Path) -> int:
    try:
        return file.stat().st_mode
    except OSError:
        return 0
