"""`turnline up` and all processes it starts. One start serves the whole module, so tests that kill it come last."""

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

from tests.support.cli import COMMAND
from tests.support.servers import ROOT, free_port, process_env, until

PROCESSES = ("postgres", "valkey", "worker", "maintenance", "api", "beat", "flower")


class Up:
    """A running `turnline up` and its terminal output."""

    def __init__(self, data_dir: Path, model_url: str):
        self.data_dir = data_dir
        self.model_url = model_url
        self.ports = {name: free_port() for name in ("API", "FLOWER", "POSTGRES", "VALKEY")}
        self.starts = 0

    def env(self):
        ports = {f"TURNLINE_{name}_PORT": str(port) for name, port in self.ports.items()}
        model = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": self.model_url}
        return process_env(TURNLINE_HOME=str(self.data_dir), TURNLINE_WORKER_CONCURRENCY="20", **model, **ports)

    def run(self, *arguments, **options):
        options |= {"env": self.env(), "cwd": self.data_dir.parent}
        return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)

    def start(self):
        self.starts += 1
        self.terminal = self.data_dir.with_name(f"terminal-{self.starts}")
        with self.terminal.open("wb") as out:
            self.process = subprocess.Popen(
                [*COMMAND, "up"],
                env=self.env(),
                stdout=out,
                stderr=out,
                cwd=self.data_dir.parent,
                start_new_session=True,
            )
        until(lambda: "API key" in self.output() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.output()
        self.children = psutil.Process(self.process.pid).children()

    def output(self):
        return self.terminal.read_text()

    def key(self):
        return json.loads((self.data_dir / "secrets.json").read_text())["api_key"]

    def request(self, method, path, **options):
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {self.key()}"}) as http:
            return http.request(method, f"http://127.0.0.1:{self.ports['API']}{path}", **options)

    def get(self, path):
        return self.request("GET", path)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def all_ended(self):
        return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in self.children)

    def child(self, text):
        return next(child for child in psutil.Process(self.process.pid).children() if text in " ".join(child.cmdline()))


@pytest.fixture(scope="module")
def model_url():
    with subprocess.Popen([sys.executable, "-m", "sandbox"], env=process_env(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        yield sandbox.stdout.readline().split()[-1] + "/v1"
        sandbox.terminate()


@pytest.fixture(scope="module")
def up(scratch, model_url):
    started = Up(scratch / "up" / "home", model_url)
    started.data_dir.parent.mkdir(mode=0o711)
    started.start()
    yield started
    started.stop()
    assert started.all_ended()


def test_first_start_creates_a_workspace_and_prints_its_key(up):
    assert up.get("/v1/agents").status_code == 200
    assert up.key() in up.output()
    assert f"http://127.0.0.1:{up.ports['API']}/docs" in up.output()
    assert up.get("/docs").status_code == 200


def test_flower_requires_its_password(up):
    url = f"http://127.0.0.1:{up.ports['FLOWER']}/workers"
    password = json.loads((up.data_dir / "secrets.json").read_text())["flower_password"]
    with httpx.Client(trust_env=False) as http:
        assert http.get(url).status_code == 401
        assert http.get(url, auth=("turnline", password)).status_code == 200
    assert not any(password in word for child in up.children for word in child.cmdline())


def test_files_are_readable_by_the_owner_only(up):
    assert stat.S_IMODE(up.data_dir.stat().st_mode) & 0o066 == 0
    for name in ("secrets.json", "postgres/password", "valkey/password", "logs/api.log"):
        assert stat.S_IMODE((up.data_dir / name).stat().st_mode) == 0o600, name
    assert sorted(log.stem for log in (up.data_dir / "logs").iterdir()) == sorted([*PROCESSES, "migrate"])


def test_other_commands_use_its_servers(up):
    doctor = up.run("doctor")
    assert "Workers answer: maintenance@" in doctor.stdout
    assert (doctor.returncode, "Nothing is wrong." in doctor.stdout) == (0, True), doctor.stdout
    assert up.run("turns").stdout == "There are no turns yet.\n"
    second = up.run("up")
    assert second.returncode == 1
    assert f"already runs on {up.data_dir} (process {up.process.pid})" in second.stderr


def test_chat_finds_an_agent_by_name(up):
    assert up.request("POST", "/v1/agents", json={"name": "Order desk", "model_name": "gpt-5-mini"}).status_code == 201
    chat = up.run("chat", "order desk", input="[[say All is well.]]\n\n")
    assert "All is well." in chat.stdout, chat.stderr
    assert up.run("turns").stdout.count(" done ") >= 1
    unknown = up.run("chat", "Nobody", input="")
    assert (unknown.returncode, "There is no agent named 'Nobody'" in unknown.stderr) == (1, True)


def test_ctrl_c_cancels_a_reply_and_the_chat_continues(up):
    output = up.data_dir.with_name("chat")
    command = [*COMMAND, "chat", "order desk"]
    with output.open("wb") as out, subprocess.Popen(command, env=up.env(), cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out) as chat:
        assert chat.stdin is not None
        chat.stdin.write(b"[[words 1000]] [[token-ms 30]]\n")
        chat.stdin.flush()
        until(lambda: "alpha bravo" in output.read_text(), 30)
        chat.send_signal(signal.SIGINT)
        until(lambda: "Cancelled." in output.read_text(), 30)
        chat.stdin.write(b"[[say Still here.]]\n\n")
        chat.stdin.close()
        assert chat.wait(30) == 0, output.read_text()
    assert "Still here." in output.read_text()
    assert up.run("turns").stdout.count(" cancelled ") == 1


def test_port_in_use_is_reported_with_its_setting(up, scratch):
    other = Up(scratch / "up" / "other", up.model_url)
    other.ports["API"] = up.ports["API"]
    done = other.run("up")
    assert done.returncode == 1
    assert f"Port {up.ports['API']} is in use by process" in done.stderr
    assert "TURNLINE_API_PORT" in done.stderr


@pytest.mark.parametrize(("process", "command"), [("worker", "turns-1@"), ("api", "api.app:app"), ("postgres", "bin/postgres")])
def test_killed_process_is_restarted(up, process, command):
    before = up.output().count(f"\n{process} runs again")
    os.kill(up.child(command).pid, signal.SIGKILL)
    until(lambda: up.output().count(f"\n{process} runs again") > before, 30)
    until(lambda: up.get("/v1/agents").status_code == 200, 20)


def test_sigkill_leaves_nothing_running_and_the_next_start_uses_the_same_data(up):
    key = up.key()
    up.children = psutil.Process(up.process.pid).children()
    assert len(up.children) == len(PROCESSES)
    up.process.kill()
    up.process.wait()
    until(up.all_ended, 20)
    up.start()
    assert up.key() == key
    assert up.get("/v1/agents").status_code == 200


def test_ctrl_c_stops_everything(up):
    up.children = psutil.Process(up.process.pid).children()
    assert up.stop(signal.SIGINT) == 0
    assert up.all_ended()
    assert up.output().endswith("Everything has stopped.\n")
    assert "Traceback" not in up.output()
