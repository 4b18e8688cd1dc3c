"""A private RabbitMQ node for tests, from the system's package."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

ABSENT = "RabbitMQ is not installed, so this was not run on it; install the system's package rabbitmq-server"

# Debian's /usr/sbin/rabbitmq-server changes to another user and directory; the script behind it runs as the calling user.
_SERVERS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/local/sbin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server")


class RabbitMQ:
    """One node on loopback, with its own ports, data, cookie and port mapper, which all end with it.

    `with RabbitMQ() as broker: Celery(broker=broker.url)`. Takes some seconds to start.
    """

    def __init__(self) -> None:
        self.port, self._dist_port, self._epmd_port = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._home = Path(tempfile.mkdtemp(prefix="turnline-rabbitmq-"))
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @staticmethod
    def executable() -> str | None:
        """Return the path of the server's start script, or None when RabbitMQ is absent."""
        return next((path for path in _SERVERS if os.access(path, os.X_OK)), None)

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start the node and wait until it answers. Raises `RuntimeError` with the node's output if it does not."""
        executable = self.executable()
        if executable is None:
            raise RuntimeError(ABSENT)
        (self._home / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.console = false\n")
        (self._home / "enabled_plugins").write_text("[].\n")
        epmd = shutil.which("epmd")
        if epmd is not None and self._epmd is None:  # without epmd the node starts one, which outlives the node
            self._epmd = subprocess.Popen([epmd], env=self._environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with (self._home / "out").open("wb") as out:
            self._server = subprocess.Popen(
                [executable],
                env=self._environment(),
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + timeout_s
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > until:
                words = (self._home / "out").read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"RabbitMQ did not start:\n{words}")
            time.sleep(0.1)
        return self

    def kill(self) -> int:
        """SIGKILL the node and return its exit code; `start` starts it again, with the same port and data."""
        assert self._server is not None, "the node is not running"
        os.killpg(self._server.pid, signal.SIGKILL)
        return self._server.wait()

    def stop(self) -> None:
        """Stop the node and its port mapper, and remove its files."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)
                self._server.wait()
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
        return False

    def _environment(self) -> dict[str, str]:
        home = str(self._home)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": home,  # where the cookie is
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"turnline-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{home}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{home}/config",
            "RABBITMQ_SCHEMA_DIR": f"{home}/schema",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
