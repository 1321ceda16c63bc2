"""Secret files, as Docker, Kubernetes and systemd hand them over: a folder with one setting in each file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from api.origin import guess

_LONGEST = 1024 * 1024


class UnusableSecret(Exception):
    """A secret file, or their folder, cannot be used; the message names it and never what is in it."""


@dataclass(frozen=True, slots=True)
class SecretFile:
    path: Path
    text: str


def read_secret_files(
    folder: Path, known: Mapping[str, tuple[str, str]], prefix: str
) -> dict[tuple[str, str], SecretFile]:
    """The files that are named as variables are, in any case and with or without their prefix.

    A file of another name is somebody else's, unless its name begins as one of ours does: then it is
    a mistake. Raises `UnusableSecret`.
    """
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UnusableSecret(f"secrets folder {folder}: cannot be read: {error.strerror}") from None
    ours = {name.removeprefix(prefix): name for name in known}
    beginnings = {f"{section.upper()}__" for section, _ in known.values()}
    found: dict[tuple[str, str], SecretFile] = {}
    for path in files:
        name = path.name.upper().removeprefix(prefix)
        if name in ours:
            key = known[ours[name]]
            if key in found:
                raise UnusableSecret(
                    f"secret file {path}: is the same setting as {found[key].path.name}: remove one of them"
                )
            found[key] = SecretFile(path, _text_of(path))
        elif path.name.upper().startswith((prefix, *beginnings)):
            close = guess(name.lower(), [each.lower() for each in ours])
            raise UnusableSecret(f"secret file {path}: unknown setting{close}")
    return found


def _text_of(path: Path) -> str:
    """What is in it, without the end of its last line."""
    try:
        if path.stat().st_size > _LONGEST:
            raise UnusableSecret(f"secret file {path}: is longer than {_LONGEST} bytes")
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise UnusableSecret(f"secret file {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnusableSecret(f"secret file {path}: is not UTF-8") from None
