"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ABSENT = "not run: no Chromium here (apt-get install chromium)"


def chromium() -> str | None:
    """Return the path of the browser, or None if it is not installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab. `complaints`: the errors of its console, its scripts and its requests."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the browser and return its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(30):
            reply = await answer
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to `url` and wait until it has loaded."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(30):
            await self._loaded.wait()

    async def text(self) -> str:
        """Return the text of the page."""
        reply = await self.call("Runtime.evaluate", expression="document.body.innerText", returnByValue=True)
        return str(reply["result"]["value"])

    async def says(self, *words: str, within_s: float = 30) -> str:
        """Return the text of the page once it contains all of `words`; fail if it does not in time."""
        deadline = time.monotonic() + within_s
        while True:
            text = await self.text()
            joined = "".join(text.split())  # a word may be split over several boxes
            missing = [word for word in words if "".join(word.split()) not in joined]
            if not missing:
                return text
            assert time.monotonic() < deadline, f"the page does not contain {missing}:\n{text}"
            await asyncio.sleep(0.1)

    async def picture(self, path: Path) -> None:
        """Save a screenshot as a PNG."""
        reply = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(reply["data"]))

    async def close(self) -> None:
        """Stop listening."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            reply = message.json()
            parameters = reply.get("params", {})
            match reply.get("method"):
                case None:
                    self._answers.pop(reply["id"]).set_result(reply)
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Runtime.exceptionThrown":
                    self.complaints.append(parameters["exceptionDetails"]["text"])
                case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                    self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")


@asynccontextmanager
async def browsing(headers: dict[str, str], *, width: int = 1100, height: int = 860) -> AsyncIterator[Page]:
    """Open a tab in a new browser that sends `headers` with every request."""
    program = chromium()
    assert program is not None, ABSENT
    with tempfile.TemporaryDirectory(prefix="turnline-browser-", ignore_cleanup_errors=True) as profile:
        argv = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        argv += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    address = next(tab["webSocketDebuggerUrl"] for tab in await reply.json() if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.call(f"{domain}.enable")
                    await page.call("Network.setExtraHTTPHeaders", headers=headers)
                    yield page
                    await page.close()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(60):
        while not (file.exists() and file.read_text().count("\n")):
            await asyncio.sleep(0.1)
    return int(file.read_text().splitlines()[0])
