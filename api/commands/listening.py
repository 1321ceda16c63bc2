"""The sockets of the server, opened before anything else is, so that it can be said why they cannot be."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

from api.settings import ServerSettings


class CannotListen(Exception):
    """Raised with the key of [server] that is in the way, and the reason with its remedy."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def bound(server: ServerSettings) -> list[socket.socket]:
    """One socket for each address of the host, or that of the Unix socket; none of them listens yet."""
    if server.unix_socket:
        return [_bound_to_path(Path(server.unix_socket))]
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise CannotListen(
            "host", f"{server.host} is not known: {reason}: name an address of this machine"
        ) from None
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        # Where any port will do, it is the same one on every address.
        port = sockets[0].getsockname()[1] if sockets else server.port
        try:
            sockets.append(_bound_to_address(family, (address[0], port, *address[2:])))
        except OSError as error:
            failed = error
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                break
    # A name may stand for addresses that this machine does not have, such as ::1 without IPv6.
    if failed and (not sockets or failed.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}):
        for each in sockets:
            each.close()
        raise _reason(server, failed)
    return sockets


def _bound_to_address(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would allow to take a port from who has it
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _reason(server: ServerSettings, error: OSError) -> CannotListen:
    where = f"{server.port} on {server.host}"
    if error.errno == errno.EADDRINUSE:
        return CannotListen("port", f"{where}: address already in use: choose another, or stop who has it")
    if error.errno == errno.EACCES:
        return CannotListen("port", f"{where} is not allowed to this user: choose one from 1024 on")
    reason = f"{server.host} is no address of this machine: {error.strerror}: name one, or 0.0.0.0 for all"
    return CannotListen("host", reason)


def _bound_to_path(path: Path) -> socket.socket:
    if path.is_socket():
        _remove_if_left(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        path.chmod(0o666)  # who may connect is decided by the folder
    except OSError as error:
        made.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "something else is there: remove it, or name another path"
        raise CannotListen("unix_socket", f"{path} cannot be made: {reason}") from None
    return made


def _remove_if_left(path: Path) -> None:
    """Remove the socket of a server that was killed; that of one that listens stays."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise CannotListen("unix_socket", f"{path} cannot be looked at: {error.strerror}") from None
    raise CannotListen("unix_socket", f"another server listens on {path}: stop it, or name another path")
