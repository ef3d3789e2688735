"""A headless Chromium over its debugging pipe: what a page looks like, says and does, with nothing installed beside it.

`python tests/chromium.py page.html picture.png [width height [#anchor]]` takes a picture.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT = 60.0  # seconds for an answer


class Page:
    """One tab. `problems`: what the page or the browser complained of; `requested`: every address it asked for."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in, self._rest = to_browser, from_browser, b""
        self._count, self._events = 0, []
        self._session: str | None = None
        self.problems: list[str] = []
        self.requested: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict:
        """One command of the DevTools protocol and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], TIMEOUT)
            assert ready, "Chromium does not answer"
            piece = os.read(self._in, 2**20)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict) -> None:
        self._events.append(event["method"])
        params = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif event["method"] == "Log.entryAdded":
            self.problems.append(json.dumps(params["entry"]))
        elif event["method"] == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requested.append(params["request"]["url"])

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + TIMEOUT
        while "Page.loadEventFired" not in self._events:
            assert time.monotonic() < end, f"{path} does not load"
            self._note(self._read())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Another size of the window, in CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own; profile: an empty folder for what it writes."""
    to_browser, from_browser = os.pipe(), os.pipe()
    for end in (to_browser[0], from_browser[1]):
        os.set_inheritable(end, True)
    # Chromium reads from 3 and writes to 4, whatever numbers our pipes got.
    start = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$0" "$@"'
    line = ["bash", "-c", start, str(BINARY), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        line, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (to_browser[0], from_browser[1]):
        os.close(end)
    try:
        yield Page(to_browser[1], from_browser[0])
    finally:
        os.close(to_browser[1])  # the browser ends with its pipe
        os.close(from_browser[0])
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(page: str, picture: str, width: str = "1200", height: str = "900", anchor: str = "") -> None:
    import tempfile

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(Path(profile)) as tab:
        tab.resize(int(width), int(height), mobile=int(width) < 600)
        tab.open(Path(page))
        if anchor:
            tab.run(f"document.querySelector({json.dumps(anchor)}).scrollIntoView()")
        time.sleep(1.5)
        Path(picture).write_bytes(tab.picture())
        for problem in tab.problems:
            print(problem, file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
