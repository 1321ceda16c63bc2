"""The ways to serve: several processes, a Unix socket, TLS, behind a proxy, and for development."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.commands.serve import uvicorn_config
from api.settings import Settings
from tests.api.service import Service, new_item, run_api, write_config
from tests.support.backends import Leg
from tests.support.processes import Child, python_environment
from tests.support.server import ROOT
from tests.support.wait import LIMIT, wait_until

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `python -m api` in an empty folder, with this [server], and wait until it says where it is."""
    children: list[Child] = []

    def started(**server: object) -> Child:
        config = write_config(tmp_path / "a.toml", {"server": {"port": 0, **server}})
        lines = config.read_text(encoding="utf-8")
        command = [sys.executable, "-m", "api", "--config", str(config)]
        env = python_environment({"PYTHONPATH": str(ROOT)})
        child = Child(command, log=tmp_path / "out.log", env=env, cwd=tmp_path)
        children.append(child)
        wait_until(lambda: "  settings " in log(tmp_path) or not child.alive, f"it serves with {lines}")
        assert child.alive, log(tmp_path)
        return child

    yield started
    for child in children:
        child.stop()


def log(folder: Path) -> str:
    path = folder / "out.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def address(folder: Path) -> str:
    (line,) = [line for line in log(folder).splitlines() if " is at " in line]
    return line.rpartition(" ")[2]


def ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_several_workers_share_one_database(service_leg: Leg, own_service: Service) -> None:
    own_service.env["UOW_SERVER__WORKERS"] = "2"
    own_service.start()
    assert own_service.log().count("Started server process") == 2
    assert own_service.log().count(" is at ") == 1
    client = own_service.client()
    made = {new_item(client) for _ in range(20)}
    assert own_service.backend.count("items") == len(made) == 20, service_leg
    assert own_service.terminate() == 0
    assert own_service.log().count("Finished server process") == 2
    assert "Traceback" not in own_service.log()
    own_service.backend.wait_until_at_rest()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket_is_served_and_removed(start: Start, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "x.sock"
    child = start(unix_socket=str(path), workers=workers)
    assert address(tmp_path) == f"unix:{path}"
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, timeout=LIMIT) as client:
        assert client.get("http://x/readyz").status_code == 200
        taken = run_api("--config", str(tmp_path / "a.toml"), cwd=tmp_path)
        assert (taken.returncode, taken.stdout) == (71, "")
        assert f"[server] unix_socket: another server listens on {path}: stop it" in taken.stderr
        assert client.get("http://x/readyz").status_code == 200
    assert child.stop(signal.SIGTERM) == 0
    assert not path.exists()
    assert "Traceback" not in log(tmp_path)


def test_the_socket_of_a_server_that_was_killed_is_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    start(unix_socket=str(path)).stop(signal.SIGKILL)
    assert path.exists()
    (tmp_path / "out.log").unlink()
    start(unix_socket=str(path), workers=2)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=LIMIT) as client:
        assert client.get("http://x/readyz").status_code == 200


def test_tls_is_served_from_its_two_files(start: Start, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x"
    subprocess.run(
        [*command.split(), "-keyout", "k", "-out", "c"], check=True, capture_output=True, cwd=tmp_path
    )
    start(tls_certificate=str(tmp_path / "c"), tls_key=str(tmp_path / "k"))
    assert address(tmp_path).startswith("https://127.0.0.1:")
    with httpx.Client(verify=False, timeout=LIMIT, trust_env=False) as client:
        assert client.get(f"{address(tmp_path)}/readyz").status_code == 200


def test_a_reloading_server_serves_and_ends_in_order(start: Start, tmp_path: Path) -> None:
    child = start(reload=True)
    with httpx.Client(timeout=LIMIT, trust_env=False) as client:
        wait_until(lambda: ready(client, f"{address(tmp_path)}/readyz"), "the first process serves")
    assert "reloader process" in log(tmp_path)
    assert child.stop(signal.SIGTERM) == 0
    assert "Traceback" not in log(tmp_path)


def test_a_reloading_server_serves_what_its_source_became(tmp_path: Path) -> None:
    """Of a copy of the source, because it is changed."""
    source = tmp_path / "source"
    for package in ("api", "uow"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    config = write_config(tmp_path / "a.toml", {"server": {"port": 0, "reload": True}})
    env = python_environment({"PYTHONPATH": str(source)})
    command = [sys.executable, "-m", "api", "--config", str(config)]
    child = Child(command, log=tmp_path / "out.log", env=env, cwd=tmp_path)
    try:
        wait_until(lambda: "  settings " in log(tmp_path) or not child.alive, "it serves")
        with httpx.Client(timeout=LIMIT, trust_env=False) as client:
            wait_until(lambda: ready(client, f"{address(tmp_path)}/readyz"), "the first process serves")
            assert client.get(f"{address(tmp_path)}/changed").status_code == 404
            with (source / "api" / "health.py").open("a", encoding="utf-8") as file:
                file.write('router.add_api_route("/changed", livez)\n')
            wait_until(lambda: ready(client, f"{address(tmp_path)}/changed"), "what has changed is served")
        assert child.stop(signal.SIGTERM) == 0
    finally:
        child.stop()
    assert "Reloading..." in log(tmp_path)
    assert "Traceback" not in log(tmp_path)


def test_workers_that_cannot_migrate_are_not_started(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "a.toml",
        {"server": {"port": 0, "workers": 2}, "database": {"url": "sqlite:///missing/x.db"}},
    )
    ended = run_api("--config", str(path), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (69, "")
    assert "cannot migrate" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_uvicorn_is_told_everything_and_asks_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("WEB_CONCURRENCY", "9")
    config = uvicorn_config(None, Settings())
    assert (config.forwarded_allow_ips, config.workers, config.proxy_headers) == ("127.0.0.1", 1, True)
    nobody = Settings.model_validate({"server": {"trusted_proxies": ""}})
    assert uvicorn_config(None, nobody).proxy_headers is False
