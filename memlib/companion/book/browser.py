"""Looking at pages in headless Chromium, through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from memlib.base.errors import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]

# Looks at the page as drawn: title and heading, pictures that did not load, the scheme in force, text on its ground.
_LOOK = """(() => {
  document.querySelectorAll('img').forEach(i => i.loading = 'eager');
  return Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => ({
    title: document.title,
    heading: (document.querySelector('h1') || {innerText: ''}).innerText.trim(),
    broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 120)),
    scheme: document.documentElement.dataset.theme || '',
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
  }));
})()"""


@dataclass
class Look:
    """One page as the browser drew it."""

    url: str
    title: str = ""
    heading: str = ""
    scheme: str = ""
    ground: str = ""
    ink: str = ""
    overflow: int = 0
    broken: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def find_chromium() -> str:
    """Path of Chromium: that in the environment variable CHROMIUM, or the first found; InputError if there is none."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise InputError("Chromium is missing: install it (on Debian: apt-get install chromium) or set CHROMIUM to its path.")


def look_at(pages: list[Path], scheme: str = "light", width: int = 1280, screenshots: Path | None = None) -> list[Look]:
    """Open each page from disk, as a reader does after the build, and report what the browser saw and complained of.

    `scheme` is the reader's preference, light or dark; `width` is in CSS pixels; pictures of the pages go to
    `screenshots` if given.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [find_chromium(), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},1000", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return asyncio.run(_look_at(Path(profile), process, pages, scheme, width, screenshots))
        finally:
            process.terminate()
            process.wait(timeout=20)


async def _look_at(profile: Path, process: subprocess.Popen, pages: list[Path], scheme: str, width: int, screenshots: Path | None) -> list[Look]:
    tab = await _Tab.open(profile, process)
    try:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await tab.call("Emulation.setEmulatedMedia", features=features)
        await tab.resize(width)
        return [await _look(tab, page, screenshots) for page in pages]
    finally:
        tab.socket.close()


async def _look(tab: _Tab, page: Path, screenshots: Path | None) -> Look:
    url = page.resolve().as_uri()
    tab.events.clear()
    answer = await tab.call("Page.navigate", url=url)
    look = Look(url)
    if answer.get("errorText"):
        look.errors.append(answer["errorText"])
        return look
    await tab.until("Page.loadEventFired")
    await asyncio.sleep(0.2)  # scripts that run after loading get their say
    drawn = await tab.call("Runtime.evaluate", expression=_LOOK, awaitPromise=True, returnByValue=True)
    for name, value in drawn["result"]["value"].items():
        setattr(look, name, value)
    for event in tab.events:
        _note(event["method"], event["params"], look)
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)
        size = (await tab.call("Page.getLayoutMetrics"))["cssContentSize"]
        await tab.resize(tab.width, int(size["height"]) + 1)  # the whole page becomes the window
        shot = await tab.call("Page.captureScreenshot")
        (screenshots / f"{page.stem}-{look.scheme or 'plain'}.png").write_bytes(base64.b64decode(shot["data"]))
        await tab.resize(tab.width)
    return look


def _note(method: str, params: dict[str, Any], look: Look) -> None:
    if method == "Runtime.exceptionThrown":
        look.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception")[:300])
    elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "assert"}:
        look.errors.append(" ".join(str(arg.get("value", arg.get("description", ""))) for arg in params["args"])[:300])
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        entry = params["entry"]
        look.errors.append(f"{entry['text']} {entry.get('url', '')}".strip()[:300])
    elif method == "Network.requestWillBeSent":
        address = params["request"]["url"]
        if not address.startswith(("file:", "data:", "blob:", "about:")):
            look.outside.append(address)


class _Tab:
    """One tab: numbered calls, their answers, and the events that came in between."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket, self.events, self._numbers, self.width = socket, [], itertools.count(1), 0

    @classmethod
    async def open(cls, profile: Path, process: subprocess.Popen) -> _Tab:
        for _ in range(300):
            file = profile / "DevToolsActivePort"
            if file.exists() and file.read_text().strip():
                break
            if process.poll() is not None:
                raise InputError("Chromium ended as soon as it was started: run it by hand to see why.")
            await asyncio.sleep(0.1)
        else:
            raise InputError("Chromium did not answer within 30 seconds.")
        port = file.read_text().split()[0]
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
        address = next(t["webSocketDebuggerUrl"] for t in json.loads(answer.body) if t["type"] == "page")
        return cls(await websocket_connect(address, max_message_size=1 << 28))

    async def _next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self.socket.read_message(), timeout=60)
        if message is None:
            raise InputError("Chromium closed the connection.")
        return json.loads(message)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come first are kept."""
        number = next(self._numbers)
        await self.socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = await self._next()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            if "method" in message:
                self.events.append(message)

    async def resize(self, width: int, height: int = 1000) -> None:
        """Set the window's size in CSS pixels."""
        self.width = width
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def until(self, method: str) -> None:
        """Wait for an event; one that already came counts."""
        while not any(event["method"] == method for event in self.events):
            message = await self._next()
            if "method" in message:
                self.events.append(message)


def complaints(look: Look) -> list[str]:
    """What is wrong with a page as drawn, one sentence each."""
    name = look.url.rsplit("/", 1)[-1]
    found = [f"{name}: the console says: {error}" for error in look.errors]
    found += [f"{name}: picture {source} does not show" for source in look.broken]
    found += [f"{name}: asks {address} for a file, so it is not whole offline" for address in look.outside]
    if not look.heading:
        found.append(f"{name}: the page has no heading")
    if look.overflow > 0:
        found.append(f"{name}: the page is {look.overflow} pixels wider than the window")
    if look.ground == look.ink:
        found.append(f"{name}: text and ground have the same colour")
    return found
