"""A headless Chromium driven over its own protocol: click, type, read, look, and what it logged."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import FLAGS, chromium
from websockets.sync.client import ClientConnection, connect


class Page:
    """One tab; `problems` are its exceptions, console errors and refused requests."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        is_error = (
            method == "Runtime.exceptionThrown"
            or (method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"))
            or (method == "Log.entryAdded" and found["entry"]["level"] == "error")
        )
        if is_error:
            self.problems.append(json.dumps(found)[:500])

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise."""
        found = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script: str, *, timeout_s: float = 60) -> Any:
        """Value of an expression as soon as it is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.problems, self.text()[:2000])
            time.sleep(0.1)
        return value

    def text(self) -> str:
        """What a reader sees."""
        return str(self.run("document.body.innerText"))

    def press(self, key: str, *, code: int) -> None:
        """Press and release a key."""
        text = {"Enter": "\r"}.get(key)
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
            )

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.command("Input.insertText", text=text)

    def size(self, width: int, height: int) -> None:
        """Set the window's inner size in pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def color_scheme(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, out: Path) -> None:
        """Write what is seen as PNG."""
        out.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """Open `url` in a Chromium of its own; skips the test where there is none."""
    # Its helpers may write into the profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(
        prefix="distillery-browser-", ignore_cleanup_errors=True
    ) as profile:
        process = subprocess.Popen(
            [
                chromium(), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = _port(Path(profile) / "DevToolsActivePort", process)
            with connect(_tab(port), max_size=None, open_timeout=60) as socket:
                page = Page(socket)
                page.command("Page.navigate", url=url)
                page.wait_for(
                    "location.href !== 'about:blank' && document.readyState === 'complete'"
                )
                yield page
        finally:
            process.terminate()
            process.wait(timeout=30)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert process.poll() is None, "chromium ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(file.read_text().splitlines()[0])


def _tab(port: int) -> str:
    import httpx

    tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=60).json()
    return str(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"])
