"""A headless Chromium for the tests of pages: what a page loads, says, shows, and where the keyboard leads."""

import base64
import json
import os
import select
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--remote-debugging-pipe")  # fmt: skip
PHONE, DESKTOP = (390, 844), (1280, 900)


class Browser:
    """Speak Chromium's DevTools protocol over a pair of pipes (its file descriptors 3 and 4); no socket is opened."""

    def __init__(self, profile):
        read, self._down = os.pipe()
        self._up, write = os.pipe()
        shell = f'exec "$0" "$@" 3</dev/fd/{read} 4>/dev/fd/{write}'
        command = ["sh", "-c", shell, CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._numbers, self._buffer, self._session = count(1), b"", None
        self.events = []

    def close(self):
        self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._down)
        os.close(self._up)

    def call(self, method, **params):
        """Call a method of the protocol and return its result; events that come meanwhile are kept."""
        message = {"id": next(self._numbers), "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._down, json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != message["id"]:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, page, size=DESKTOP, script=True):
        """Open a file in a new tab of a size in pixels, and wait until all of it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events = []
        self.call("Page.navigate", url=Path(page).as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        return self

    def evaluate(self, expression):
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key, code):
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def focus_order(self, limit=60):
        """Press Tab until the focus leaves the page; return id, class or text of each element on the way."""
        seen = []
        for _ in range(limit):
            self.press("Tab", 9)
            name = self.evaluate("(e => e === document.body ? '' : e.id || e.className || e.textContent.trim())"
                                 "(document.activeElement)")  # fmt: skip
            if not name:
                break
            seen.append(name)
        return seen

    def screenshot(self, path):
        """Save a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(picture["data"]))

    @property
    def requests(self):
        """Addresses that the page asked for, beside itself and what it holds inside."""
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent[1:] if not url.startswith("data:")]

    @property
    def complaints(self):
        """Texts of the console, and exceptions."""
        return [event for event in self.events if event.get("method") in
                ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")]  # fmt: skip

    def _read(self):
        """Return the next message; a browser that hangs fails the test at once."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._up], [], [], 60)
            data = os.read(self._up, 1 << 16) if ready else b""
            assert data, "Chromium has ended or hangs"
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


def check_page(browser, page):
    """Assert what holds for every page, on a desktop and on a phone: nothing loaded, no complaint, all images there."""
    for size in (DESKTOP, PHONE):
        browser.open(page, size)
        assert browser.requests == [] and browser.complaints == []
        hidden = "[...document.images].filter(i => !(i.complete && i.naturalWidth && i.naturalHeight)).length"
        assert browser.evaluate(hidden) == 0
        width, limit = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= limit == size[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium for the tests of one file."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
