"""A host of files that behaves well, unless told for its next answers to break off, refuse, forget ranges or send rubbish."""

import contextlib
import http.server
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

Server = TypeVar("Server", bound=http.server.ThreadingHTTPServer)


@dataclass
class Asked:
    """One request: path, its Range and User-Agent, what was answered, and bytes of the body sent."""

    path: str
    range: str | None
    agent: str | None
    status: int = 0
    n_sent: int = 0


class UnreliableServer(http.server.ThreadingHTTPServer):
    """``files``: path -> content. ``acts``: path -> what to do at the next requests, one after the other; ``always``: after.

    An act may have: status (with headers), n_sent (bytes of the body after which the connection breaks), no_range (the
    whole is sent), headers (added, or None to leave one out), start (as Content-Range says), hold (after so many bytes,
    until an event is set), content (instead of the file's).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.acts: dict[str, list[dict]] = defaultdict(list)
        self.always: dict[str, dict] = {}
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put_json(self, path: str, content: object) -> None:
        """Answer ``path`` with JSON."""
        self.files[path] = json.dumps(content).encode()

    def n_sent(self, path: str) -> int:
        """Bytes of ``path`` sent so far."""
        return sum(asked.n_sent for asked in self.asked if asked.path == path)

    def handle_error(self, request, client_address):
        """Clients that go away are part of the trial."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: UnreliableServer

    def do_GET(self):
        path = self.path.partition("?")[0]
        queue = self.server.acts[path]
        act = queue.pop(0) if queue else self.server.always.get(path, {})
        content = act.get("content", self.server.files.get(path))
        asked = Asked(path, *(self.headers.get(name) for name in ("Range", "User-Agent")))
        self.server.asked.append(asked)
        asked.status = act.get("status") or (404 if content is None else 200)
        headers, body = {}, b""
        if asked.status == 200:
            start = int(asked.range.removeprefix("bytes=").removesuffix("-")) if asked.range else 0
            if asked.range and not act.get("no_range"):
                if start >= len(content):
                    asked.status, headers["Content-Range"] = 416, f"bytes */{len(content)}"
                else:
                    asked.status, first = 206, act.get("start", start)
                    body = content[first:]
                    headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            else:
                body = content
        headers = {"Content-Length": str(len(body)), **headers, **act.get("headers", {})}
        self.send_response(asked.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        body = body[: act.get("n_sent")]
        n_first, go_on = act.get("hold", (len(body), None))
        for block in filter(None, (body[:n_first], body[n_first:])):
            asked.n_sent += len(block)  # before: the client may look as soon as it has them
            self.wfile.write(block)
            self.wfile.flush()
            if go_on is not None:
                go_on.wait()

    def log_message(self, *arguments):
        """Say nothing."""


@contextlib.contextmanager
def working(server: Server) -> Iterator[Server]:
    """A server at work in a thread of its own."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def serving() -> contextlib.AbstractContextManager[UnreliableServer]:
    """Such a server at work."""
    return working(UnreliableServer())
