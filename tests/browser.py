"""A headless Chromium from the system's packages, driven by its DevTools protocol over two pipes: no driver is needed."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from running import starting

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATH = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab: ``messages`` are what the browser said of it, in order."""

    def __init__(self, read: int, write: int):
        self.messages, self._read, self._write, self._rest = [], read, write, b""
        self._ids, self._session = itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """The browser's answer to one command."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda said: said.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Load a page in a window of that size and wait until it is there."""
        self.messages.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=address)
        self._wait(lambda said: said.get("method") == "Page.loadEventFired")

    def value(self, script: str) -> object:
        """What a line of JavaScript gives."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions and dialogs since the page was opened."""
        found = []
        for said in self.messages:
            method, what = said["method"], said["params"]
            if method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening", "Network.loadingFailed"):
                found.append(json.dumps(what))
            elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(what["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(what["args"]))
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        return [said["params"]["request"]["url"] for said in self.messages if said["method"] == "Network.requestWillBeSent"]

    def _wait(self, is_it: Callable[[dict], bool]) -> dict:
        while True:
            while b"\0" in self._rest:
                line, _, self._rest = self._rest.partition(b"\0")
                said = json.loads(line)
                if "method" in said and said.get("sessionId") == self._session:
                    self.messages.append(said)
                    if said["method"] == "Page.javascriptDialogOpening":  # else the page waits for ever
                        command = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                        os.write(self._write, json.dumps(command | {"sessionId": self._session}).encode() + b"\0")
                if is_it(said):
                    return said
            content = os.read(self._read, 1 << 20)
            assert content, "the browser ended"
            self._rest += content


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with a profile in ``folder``; ends with the block."""
    (its_read, write), (read, its_write) = os.pipe(), os.pipe()
    command = [PATH, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder}", "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"]
    redirected = f'exec "$@" 3<&{its_read} 4>&{its_write}'
    with (folder / "chromium.txt").open("w") as log, starting() as start:
        start(["bash", "-c", redirected, "bash", *command], pass_fds=(its_read, its_write), stdout=log, stderr=log)
        for pipe in (its_read, its_write):
            os.close(pipe)
        try:
            yield Page(read, write)
        finally:
            for pipe in (write, read):
                os.close(pipe)
