"""Asks a server as a browser would not: with headers of one's own."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection
from typing import Any, NamedTuple

from lora_train.instrument.board.serve.server import Server


class Got(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def ask(server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
    """One request; a path without a leading slash stands below the token, `_` in a header's name is `-`."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    path = path if path.startswith("/") else f"/{server.token}/{path}"
    connection.putrequest(method, path, skip_host="Host" in asked, skip_accept_encoding=True)
    for name, value in asked.items():
        connection.putheader(name, value)
    if body is not None and "Content-Length" not in asked:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode())
    connection.close()
    return found


def post(server: Server, path: str, value: Any, **headers: str) -> Got:
    """A POST of JSON."""
    return ask(server, path, "POST", json.dumps(value).encode(), **{"Content_Type": "application/json", **headers})


def raw(server: Server, text: bytes) -> bytes:
    """What comes back for some bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as line:
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        parts = []
        while part := line.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def events(server: Server, path: str, **headers: str):
    """The events of a stream as (name, data, id), until it ends or is closed."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", f"/{server.token}/{path}", headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/event-stream"
    found: dict[str, str] = {}
    try:
        for line in iter(answer.readline, b""):
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(":")
                found[name] = value.strip()
            elif "data" in found:
                yield found["event"], json.loads(found["data"]), found["id"]
                found = {}
    finally:
        answer.close()
        connection.close()
