"""`turnline up` with everything it starts. One start serves the whole module; what kills it comes last."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.servers import ROOT, free_port, process_env, until

PARTS = ("postgres", "valkey", "worker", "maintenance", "api", "beat", "flower")


class Up:
    """One `turnline up` and its terminal."""

    def __init__(self, home: Path, model_url: str):
        self.home = home
        self.model_url = model_url
        self.ports = {name: free_port() for name in ("API", "FLOWER", "POSTGRES", "VALKEY")}
        self.starts = 0

    def env(self):
        ports = {f"TURNLINE_{name}_PORT": str(port) for name, port in self.ports.items()}
        vendor = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": self.model_url}
        return process_env(TURNLINE_HOME=str(self.home), TURNLINE_WORKER_CONCURRENCY="20", **vendor, **ports)

    def run(self, *arguments, **options):
        command = [sys.executable, "-m", "cli.main", *arguments]
        return subprocess.run(
            command, env=self.env(), cwd=self.home.parent, capture_output=True, text=True, timeout=60, check=False, **options
        )

    def start(self):
        self.starts += 1
        self.terminal = self.home.with_name(f"terminal-{self.starts}")
        with self.terminal.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "up"],
                env=self.env(),
                stdout=out,
                stderr=out,
                cwd=self.home.parent,
                start_new_session=True,
            )
        until(lambda: "API key" in self.said() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.said()
        self.children = psutil.Process(self.process.pid).children()

    def said(self):
        return self.terminal.read_text()

    def key(self):
        return json.loads((self.home / "secrets.json").read_text())["api_key"]

    def ask(self, method, path, **options):
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {self.key()}"}) as http:
            return http.request(method, f"http://127.0.0.1:{self.ports['API']}{path}", **options)

    def get(self, path):
        return self.ask("GET", path)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def gone(self):
        return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in self.children)

    def child(self, words):
        return next(child for child in psutil.Process(self.process.pid).children() if words in " ".join(child.cmdline()))


@pytest.fixture(scope="module")
def model_url():
    with subprocess.Popen([sys.executable, "-m", "sandbox"], env=process_env(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as vendor:
        assert vendor.stdout is not None
        yield vendor.stdout.readline().split()[-1] + "/v1"
        vendor.terminate()


@pytest.fixture(scope="module")
def up(scratch, model_url):
    found = Up(scratch / "up" / "home", model_url)
    found.home.parent.mkdir(mode=0o711)
    found.start()
    yield found
    found.stop()
    assert found.gone()


def test_the_first_start_makes_a_workspace_whose_key_opens_the_api(up):
    assert up.get("/v1/agents").status_code == 200
    assert up.key() in up.said()
    assert f"http://127.0.0.1:{up.ports['API']}/docs" in up.said()
    assert up.get("/docs").status_code == 200


def test_flower_asks_for_its_password(up):
    url = f"http://127.0.0.1:{up.ports['FLOWER']}/workers"
    password = json.loads((up.home / "secrets.json").read_text())["flower_password"]
    with httpx.Client(trust_env=False) as http:
        assert http.get(url).status_code == 401
        assert http.get(url, auth=("turnline", password)).status_code == 200
    assert not any(password in word for child in up.children for word in child.cmdline())


def test_what_it_keeps_is_nobody_elses_to_read(up):
    assert stat.S_IMODE(up.home.stat().st_mode) & 0o066 == 0
    for name in ("secrets.json", "postgres/password", "valkey/password", "logs/api.log"):
        assert stat.S_IMODE((up.home / name).stat().st_mode) == 0o600, name
    assert sorted(log.stem for log in (up.home / "logs").iterdir()) == sorted([*PARTS, "migrate"])


def test_doctor_and_the_other_commands_find_its_servers(up):
    examined = up.run("doctor")
    assert "Workers answer: maintenance@" in examined.stdout
    assert (examined.returncode, "Nothing is wrong." in examined.stdout) == (0, True), examined.stdout
    assert up.run("turns").stdout == "There are no turns yet.\n"
    second = up.run("up")
    assert second.returncode == 1
    assert f"already runs on {up.home} (process {up.process.pid})" in second.stderr


def test_chat_talks_to_an_agent_by_its_name(up):
    assert up.ask("POST", "/v1/agents", json={"name": "Order desk", "model_name": "gpt-5-mini"}).status_code == 201
    said = up.run("chat", "order desk", input="[[say All is well.]]\n\n")
    assert "All is well." in said.stdout, said.stderr
    assert up.run("turns").stdout.count(" done ") >= 1
    nobody = up.run("chat", "Nobody", input="")
    assert (nobody.returncode, "There is no agent named 'Nobody'" in nobody.stderr) == (1, True)


def test_ctrl_c_cancels_a_reply_and_the_chat_goes_on(up):
    said = up.home.with_name("chat")
    command = [sys.executable, "-m", "cli.main", "chat", "order desk"]
    with said.open("wb") as out, subprocess.Popen(command, env=up.env(), cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out) as chat:
        assert chat.stdin is not None
        chat.stdin.write(b"[[words 1000]] [[token-ms 30]]\n")
        chat.stdin.flush()
        until(lambda: "alpha bravo" in said.read_text(), 30)
        chat.send_signal(signal.SIGINT)
        until(lambda: "Cancelled." in said.read_text(), 30)
        chat.stdin.write(b"[[say Still here.]]\n\n")
        chat.stdin.close()
        assert chat.wait(30) == 0, said.read_text()
    assert "Still here." in said.read_text()
    assert up.run("turns").stdout.count(" cancelled ") == 1


def test_a_port_in_use_is_named_with_the_setting_that_changes_it(up, scratch):
    other = Up(scratch / "up" / "other", up.model_url)
    other.ports["API"] = up.ports["API"]
    done = other.run("up")
    assert done.returncode == 1
    assert f"Port {up.ports['API']} is in use by process" in done.stderr
    assert "TURNLINE_API_PORT" in done.stderr


@pytest.mark.parametrize(("part", "words"), [("worker", "turns-1@"), ("api", "api.app:app"), ("postgres", "bin/postgres")])
def test_a_part_that_is_killed_comes_back(up, part, words):
    before = up.said().count(f"\n{part} runs again")
    os.kill(up.child(words).pid, signal.SIGKILL)
    until(lambda: up.said().count(f"\n{part} runs again") > before, 30)
    until(lambda: up.get("/v1/agents").status_code == 200, 20)


def test_killed_outright_it_leaves_nothing_running_and_starts_again_on_its_data(up):
    key = up.key()
    up.children = psutil.Process(up.process.pid).children()
    assert len(up.children) == len(PARTS)
    up.process.kill()
    up.process.wait()
    until(up.gone, 20)
    up.start()
    assert up.key() == key
    assert up.get("/v1/agents").status_code == 200


def test_ctrl_c_stops_everything_in_order(up):
    up.children = psutil.Process(up.process.pid).children()
    assert up.stop(signal.SIGINT) == 0
    assert up.gone()
    assert up.said().endswith("Everything has stopped.\n")
    assert "Traceback" not in up.said()
