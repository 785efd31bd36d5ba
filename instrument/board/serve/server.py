"""The server: a site answers, this file says who may ask and how an answer looks on the wire.

GET  /<token>/<path>?<query>     site.get(path, query), an Answer or a Stream
POST /<token>/<path>             site.post(path, the JSON of the body), an Answer
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from ...messages import say
from ..page import simple_page
from .guard import HEADERS, is_host, is_origin, is_token, new_token

ADDRESS, PORT, TRIED = "127.0.0.1", 7007, 20
LARGEST_BODY = 1 << 16
SLOWEST = 20.0
"""Seconds that a client may take to send a request, or to take a piece of an answer."""
LINGER, MOST_DROPPED = 2.0, 1 << 22
"""Seconds for which, and bytes up to which, what a client still sends after its answer is read away."""
MOST_STREAMS, QUIET = 48, 1.5
HTML, JSON_TYPE = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Answer:
    """What is sent once."""

    body: str
    type: str = HTML
    status: int = 200
    policy: str | None = None


@dataclass(frozen=True)
class Stream:
    """Server-sent events.

    Attributes:
        events: pairs of a name with data for JSON and an id; None where there is nothing, to see whether anybody
            still listens.
    """

    events: Iterator[tuple[str, Any, str] | None] = field(repr=False)


class Site(Protocol):
    """What is served."""

    def get(self, path: str, query: Mapping[str, list[str]], last: str) -> Answer | Stream | None: ...

    def post(self, path: str, body: Any) -> Answer | None: ...


def plain(status: int, sentence: str) -> Answer:
    """A page with one sentence."""
    return Answer(simple_page(sentence), status=status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lora-train", ""
    timeout = SLOWEST
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        asked = self._allowed()
        if asked is None:
            return
        path, query = asked
        last = self.headers.get("Last-Event-ID") or ""
        with self.server.counted():
            found = self.server.answered(lambda: self.server.site.get(path, query, last))
            if isinstance(found, Stream):
                self._stream(found)
            else:
                self._send(found or plain(404, say("board.not_there")))

    def do_POST(self) -> None:
        asked = self._allowed()
        if asked is None:
            return
        body = self._body()
        if isinstance(body, Answer):
            self.close_connection = True  # what is left of the body is no request
            self._send(body)
            return
        found = self.server.answered(lambda: self.server.site.post(asked[0], body[0]))
        self._send(found or plain(404, say("board.not_there")))

    def _allowed(self) -> tuple[str, dict[str, list[str]]] | None:
        """Path and query after the token; None where the request was refused."""
        hosts, origins = self.headers.get_all("Host") or [], self.headers.get_all("Origin") or []
        if len(hosts) != 1 or not is_host(hosts[0]) or not all(map(is_origin, origins)):
            return self._refuse("board.foreign")
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, max_num_fields=500)
        except ValueError:
            return self._refuse("board.no_token")
        token, slash, path = parts.path.removeprefix("/").partition("/")
        if parts.netloc or not is_token(token, self.server.token):
            return self._refuse("board.no_token")
        if not slash:
            self.send_response(308)
            self._end({"Location": f"/{self.server.token}/", "Content-Length": "0"})
            return None
        return unquote(path), query

    def _refuse(self, key: str) -> None:
        self.close_connection = True
        self._send(plain(403, say(key)))

    def _body(self) -> Answer | tuple[Any]:
        if self.headers.get_content_type() != JSON_TYPE:
            return plain(415, say("board.no_json"))
        length = self.headers.get("Content-Length") or ""
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            return plain(411, say("board.no_length"))
        if len(length) > 10 or int(length) > LARGEST_BODY:
            return plain(413, say("board.too_large", most=LARGEST_BODY // 1024))
        try:
            return (json.loads(self.rfile.read(int(length))),)
        except (ValueError, RecursionError):
            return plain(400, say("board.no_json"))

    def _send(self, answer: Answer) -> None:
        data = answer.body.encode("utf-8", "replace")
        self.send_response(answer.status)
        policy = {"Content-Security-Policy": answer.policy} if answer.policy else {}
        self._end({"Content-Type": answer.type, "Content-Length": str(len(data)), **policy})
        self.wfile.write(data)

    def _end(self, headers: Mapping[str, str]) -> None:
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _stream(self, stream: Stream) -> None:
        self.close_connection = True
        if not self.server.streams.acquire(blocking=False):
            self._send(plain(503, say("board.too_many")))
            return
        try:
            self.send_response(200)
            self._end({"Content-Type": "text/event-stream"})
            for event in stream.events:
                if self.server.ending.is_set():
                    return
                if event is None:
                    text = ":\n\n"
                else:
                    name, data, id = event
                    text = f"id: {id}\nevent: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
                self.wfile.write(text.encode())
                self.wfile.flush()
        finally:
            self.server.streams.release()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal says what matters."""


class Server(ThreadingHTTPServer):
    """Serves a site until it is closed.

    Args:
        site: answers.
        port: of 127.0.0.1; None: PORT, or the next free one; 0: any.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, site: Site, port: int | None):
        self.site, self.token = site, new_token()
        self.ending = threading.Event()
        self._open, self._counted = 0, threading.Lock()
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)
        super().__init__((ADDRESS, 0), _Handler, bind_and_activate=False)
        self._bind(port)

    def _bind(self, port: int | None) -> None:
        tried = [port] if port is not None else [*range(PORT, PORT + TRIED), 0]
        for number in tried:
            try:
                self.server_address = (ADDRESS, number)
                self.server_bind()
                self.server_activate()
                return
            except OSError as error:
                self.socket.close()
                self.socket = socket.socket(self.address_family, self.socket_type)
                if error.errno != errno.EADDRINUSE or number == tried[-1]:
                    self.socket.close()
                    raise OSError(error.errno, error.strerror, f"{ADDRESS}:{number}") from error

    def server_bind(self) -> None:
        """As of the library, but asks no name server for the name of this machine."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def answered(self, answer: Callable[[], Any]) -> Any:
        """An answer; where it fails, a page that says so, and the reason on standard error."""
        try:
            return answer()
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return plain(500, say("board.failed", what=type(error).__name__))

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what is being answered."""
        with self._counted:
            self._open += 1
        try:
            yield
        finally:
            with self._counted:
                self._open -= 1

    def settle(self, patience: float) -> None:
        """Waits until those that are being answered have what they asked for."""
        ended = time.monotonic() + patience
        quiet = time.monotonic()
        while time.monotonic() < ended and time.monotonic() - quiet < QUIET:
            if self._open:
                quiet = time.monotonic()
            time.sleep(0.1)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection without a reset: one that is closed with bytes unread may take the answer with it."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            ended, left = time.monotonic() + LINGER, MOST_DROPPED
            while left > 0 and (seconds := ended - time.monotonic()) > 0:
                request.settimeout(seconds)
                part = request.recv(1 << 16)
                if not part:
                    break
                left -= len(part)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Answers from a thread of its own."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ending.set()
            self.shutdown()
            self.server_close()
            thread.join(timeout=5)
