"""A hub on this machine: as much of Hugging Face's protocol as a download asks of it, with every way that it can say no."""

import contextlib
import hashlib
import http.server
from dataclasses import dataclass, field

import huggingface_hub
import pytest
from huggingface_hub.utils import close_session
from unreliable_server import working

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEMBER, STRANGER, FINE_GRAINED, EXPIRED = "hf_member", "hf_stranger", "hf_fine_grained", "hf_expired"  # tokens


@dataclass
class Repository:
    """A repository's files and manners.

    is_gated: MEMBER alone may read it. n_cuts: how many transfers break off in the middle, -1 for all. is_short: bodies are
    half as long as announced before, and end properly. statuses: answers to the next requests, one after the other, before
    it behaves; always: the answer to every request.
    """

    files: dict[str, bytes]
    is_gated: bool = False
    n_cuts: int = 0
    is_short: bool = False
    statuses: list[int] = field(default_factory=list)
    always: int = 0


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories by name, all at COMMIT; ``asked`` holds (method, path, Range) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the trial."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        """Answer /OWNER/NAME/resolve/REVISION/FILE with status, code and message as the hub words them."""
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self.server.repositories.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == EXPIRED:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.always or repository.statuses:
            self._refuse(repository.always or repository.statuses.pop(0), "", "")
        elif repository.is_gated and token == FINE_GRAINED:
            self._refuse(403, "", "Please enable access to public gated repositories in your fine-grained token settings")
        elif repository.is_gated and token != MEMBER:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._give(repository, repository.files[file])

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _give(self, repository: Repository, content: bytes) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = content[start:]
        if repository.is_short and self.command == "GET":
            body = body[: len(body) // 2]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            if repository.n_cuts:
                repository.n_cuts -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def serving() -> contextlib.AbstractContextManager[HubServer]:
    """A hub at work in a thread of its own."""
    return working(HubServer())


def use(monkeypatch: pytest.MonkeyPatch, address: str, cache: object, token: str = "", offline: bool = False) -> None:
    """Have this process ask the hub at ``address``, with a cache of its own, as its environment would say at its start."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    close_session()
