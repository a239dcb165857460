"""A headless chromium, spoken to over two pipes in its DevTools protocol: enough to look at a page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. `complaints` are the errors that its console showed, `requests` the addresses that it asked for."""

    def __init__(self, to: int, source: int) -> None:
        self._to, self._from = os.fdopen(to, "wb", buffering=0), os.fdopen(source, "rb")
        self._number, self._session, self._buffer = 0, "", b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self._send("Page.navigate", url=page.resolve().as_uri())
        assert self.run(
            "new Promise(done => { const look = () => document.readyState === 'complete' && "
            "location.href !== 'about:blank' ? done(true) : setTimeout(look, 20); look(); })"
        )

    def run(self, script: str) -> Any:
        """The value of an expression of the page; a promise is waited for."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true; the test's own limit ends it."""
        self.run(
            f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look(); }})"
        )

    def close(self) -> None:
        self._session = ""
        with contextlib.closing(self._to), contextlib.closing(self._from):
            self._send("Browser.close")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._hear(answer.get("method", ""), answer.get("params", {}))

    def _hear(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def _read(self) -> bytes:
        while b"\0" not in self._buffer:
            part = os.read(self._from.fileno(), 1 << 16)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it speaks on its files 3 and 4."""
    assert CHROMIUM is not None
    their_in, to = os.pipe()
    source, their_out = os.pipe()
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    # The shell puts the pipes where the browser looks for them.
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            f'exec "$@" 3<&{their_in} 4>&{their_out}',
            "chromium",
            *command,
            f"--user-data-dir={profile}",
            "--no-first-run",
            "--autoplay-policy=no-user-gesture-required",
        ],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        browser = Browser(to, source)
        try:
            yield browser
        finally:
            browser.close()
            process.wait(20)
    finally:
        process.kill()
        process.wait()
