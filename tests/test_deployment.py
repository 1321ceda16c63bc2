"""What `deploy` hands to operators, tried without systemd and without a container engine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import dockerfile
import pytest

from api.commands.common import MISUSED, SCHEMA
from api.settings import Settings
from tests.api.service import write_config
from tests.support.processes import python_environment
from tests.support.server import ROOT, CommandServer
from tests.support.wait import LIMIT

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "uow-inventory.service"
CONTAINERFILE = DEPLOY / "Containerfile"
PAGE = ROOT / "docs" / "deployment.md"

SERVICE = """
Type WorkingDirectory ExecStart Environment LoadCredential KillMode TimeoutStopSec Restart RestartSec
RestartPreventExitStatus LimitNOFILE DynamicUser StateDirectory StateDirectoryMode RuntimeDirectory UMask
ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateUsers ProtectClock ProtectControlGroups
ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProcSubset
NoNewPrivileges CapabilityBoundingSet AmbientCapabilities RestrictAddressFamilies RestrictNamespaces
RestrictRealtime RestrictSUIDSGID LockPersonality MemoryDenyWriteExecute KeyringMode RemoveIPC
SystemCallArchitectures SystemCallFilter SystemCallErrorNumber
"""
# Of systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5): a name that is none of these is
# passed over by systemd, with a line in a log that nobody reads.
KNOWN = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": set(SERVICE.split()),
    "Install": {"WantedBy"},
}
MAY_REPEAT = {"SystemCallFilter", "Environment"}


def unit() -> dict[str, dict[str, list[str]]]:
    """The sections of the unit file, strictly: a line is empty, a comment, a header or a setting."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            assert header[1] not in sections, line
            current = sections[header[1]] = defaultdict(list)
            continue
        setting = re.fullmatch(r"(\w+)=(.*)", line)
        assert setting, f"neither a section nor a setting: {line}"
        current[setting[1]].append(setting[2])
    return sections


def test_the_unit_knows_its_directives() -> None:
    sections = unit()
    assert sections.keys() == KNOWN.keys()
    for name, settings in sections.items():
        assert set(settings) <= KNOWN[name]
        assert {key for key, values in settings.items() if len(values) > 1} <= MAY_REPEAT


def test_systemd_itself_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """Where there is no systemd, the test above is what there is."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    python = "/opt/inventory/.venv/bin/python"
    assert text.count(f"={python} ") == 1
    copy.write_text(text.replace(python, sys.executable).replace("=/opt/inventory", f"={ROOT}"))
    looked = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (looked.returncode, looked.stderr) == (0, "")


def test_the_unit_stops_and_starts_as_the_service_does() -> None:
    service, defaults = unit()["Service"], Settings()
    for_requests = defaults.server.graceful_shutdown_timeout
    for_commit = defaults.unit_of_work.settle_timeout
    for_events = defaults.outbox.timeout
    assert int(service["TimeoutStopSec"][0]) > for_requests + for_commit + for_events
    assert service["KillMode"] == ["mixed"]
    # A connection to SQLite has three files; there are two pools.
    for_pools = 2 * 3 * (defaults.database.pool_size + defaults.database.pool_overflow)
    assert int(service["LimitNOFILE"][0]) > 2 * (defaults.server.max_connections + for_pools)
    assert service["RestartPreventExitStatus"] == [f"{MISUSED} {SCHEMA}"]


def test_the_credential_that_the_unit_shows_is_a_setting() -> None:
    """systemd would hand it over, and the service would pass over a file of an unknown name."""
    text = UNIT.read_text(encoding="utf-8") + PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"LoadCredential=(\w+?)__(\w+):", text))
    assert named
    for section, key in named:
        assert key in type(getattr(Settings(), section)).model_fields


class Deployed(CommandServer):
    """A command of `deploy`, run on a copy of the files that it has there, and on nothing else."""

    def __init__(self, command: Sequence[str], *, cwd: Path, folder: Path, env: dict[str, str]) -> None:
        go = 'cd "$0" && exec "$@"'
        super().__init__(["sh", "-c", go, str(cwd), *command], folder=folder, env=env)

    def ends_in_order(self) -> None:
        assert self.client().get("/readyz").status_code == 200
        assert self.terminate() in {0, -15}
        assert "Finished server process" in self.log()
        assert "Traceback" not in self.log()


def copy_packages(target: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def test_the_command_of_the_unit_serves_and_stops(tmp_path: Path) -> None:
    service = unit()["Service"]
    (command,) = service["ExecStart"]
    (folder,) = service["WorkingDirectory"]
    opt, settings = tmp_path / "opt", tmp_path / "config.toml"
    copy_packages(opt, "uow", "api")
    write_config(settings, {"logging": {"format": "json"}})
    state = tmp_path / service["StateDirectory"][0]
    credentials = tmp_path / "credentials"
    state.mkdir()
    credentials.mkdir()
    # As LoadCredential hands it over.
    (credentials / "database__url").write_text(f"sqlite:///{state}/inventory.db\n")
    places = {f"{folder}/.venv/bin/python": sys.executable, "/etc/inventory/config.toml": str(settings)}
    words = [places.get(word, word) for word in shlex.split(command)]
    assert words[0] == sys.executable
    environment = dict(each.split("=", 1) for each in service["Environment"])
    server = Deployed(
        [*words, "--port", "{port}"],
        cwd=opt,
        folder=tmp_path,
        env={**environment, "CREDENTIALS_DIRECTORY": str(credentials)},
    )
    try:
        server.start().ends_in_order()
    finally:
        server.close()
    assert (state / "inventory.db").is_file()


@pytest.fixture(scope="module")
def instructions() -> list[dockerfile.Command]:
    """As Docker's own parser reads them."""
    return list(dockerfile.parse_file(str(CONTAINERFILE)))


def values(instructions: Sequence[dockerfile.Command], name: str) -> list[tuple[str, ...]]:
    return [each.value for each in instructions if each.cmd.upper() == name]


def copied(instructions: Sequence[dockerfile.Command]) -> list[tuple[str, str]]:
    """What comes from the checkout, and where it goes to."""
    pairs = [each.value for each in instructions if each.cmd.upper() == "COPY" and not each.flags]
    assert all(len(pair) == 2 for pair in pairs)
    return [(source, target) for source, target in pairs]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the checkout into a build: the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.lstrip("!")
        if line and not line.startswith("#") and (fnmatch(path, pattern) or fnmatch(path, f"{pattern}/*")):
            sent = line.startswith("!")
    return sent


def test_what_the_container_copies_is_there_and_is_sent(instructions: Sequence[dockerfile.Command]) -> None:
    for source, _ in copied(instructions):
        assert (ROOT / source).exists(), source
        assert is_sent(source.rstrip("/")), source
    assert is_sent("api/app.py")
    assert not any(map(is_sent, [".git/config", ".venv/bin/python", "inventory.db", "tests/conftest.py"]))


def test_the_container_installs_what_is_tested_and_runs_as_nobody(
    instructions: Sequence[dockerfile.Command],
) -> None:
    bases = {value[0] for value in values(instructions, "FROM")}
    assert len(bases) == 1  # compiled files and the environment's python are those of one version
    (installing,) = [run for (run,) in values(instructions, "RUN") if "requirements.lock" in run]
    assert "--require-hashes" in installing
    assert "--only-binary :all:" in installing
    last = [each.cmd.upper() for each in instructions]
    assert last.index("USER") > max(number for number, name in enumerate(last) if name == "RUN")
    (user,) = values(instructions, "USER")
    assert int(user[0].partition(":")[0]) > 0
    assert values(instructions, "STOPSIGNAL") == [("SIGTERM",)]


@pytest.fixture
def container(
    instructions: Sequence[dockerfile.Command], tmp_path: Path
) -> tuple[Path, Callable[[str], str], dict[str, str]]:
    """The working folder in the container's file system, the places in it, and its environment."""
    root = tmp_path / "root"
    for source, target in copied(instructions):
        place = root / target.lstrip("/")
        if (ROOT / source).is_dir():
            copy_packages(place.parent, source.rstrip("/"))
        else:
            place = place / source if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    (words,) = values(instructions, "ENV")
    (data,), (work,) = values(instructions, "VOLUME")[0], values(instructions, "WORKDIR")[0]
    here = root / work.lstrip("/")
    (root / data.lstrip("/")).mkdir(parents=True)

    def inside(text: str) -> str:
        # The settings and the environment name places of the container.
        return re.sub(r"(?<![\w.])/(?=(?:opt|var|etc)/)", f"{root}/", text)

    settings = here / "config.toml"
    settings.write_text(inside(settings.read_text()))
    environment = {name: inside(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # its own python is in a build
    return here, inside, {**environment, "UOW_SERVER__HOST": "127.0.0.1"}


def test_the_container_checks_itself_serves_is_healthy_and_stops(
    instructions: Sequence[dockerfile.Command],
    container: tuple[Path, Callable[[str], str], dict[str, str]],
    tmp_path: Path,
) -> None:
    here, inside, environment = container
    (entrypoint,), (command,) = values(instructions, "ENTRYPOINT"), values(instructions, "CMD")
    checked = subprocess.run(
        [*entrypoint, "check"],
        cwd=here,
        env=python_environment(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * LIMIT,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert inside("/var/lib/inventory/inventory.db") in checked.stdout

    server = Deployed([*entrypoint, *command, "--port", "{port}"], cwd=here, folder=tmp_path, env=environment)
    try:
        server.start()
        (health,) = values(instructions, "HEALTHCHECK")
        (exposed,) = values(instructions, "EXPOSE")[0]
        assert health[0] == "CMD"
        assert [word.count(f":{exposed}/") for word in health[1:]] == [0, 0, 1]
        asked = [word.replace(f":{exposed}/", f":{server.port}/") for word in health[1:]]
        assert subprocess.run(asked, env=python_environment(environment), check=False).returncode == 0
        server.ends_in_order()
        ill = subprocess.run(asked, env=python_environment(environment), check=False, capture_output=True)
        assert ill.returncode == 1
    finally:
        server.close()
    assert Path(inside("/var/lib/inventory/inventory.db")).is_file()
    assert Settings().server.port == int(exposed)
