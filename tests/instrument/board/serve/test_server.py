"""Who is answered, and that nothing a client sends ends the server or reaches a file."""

from __future__ import annotations

import socket
import threading

import pytest
from lora_train.instrument.board.serve import server as module
from lora_train.instrument.board.serve.server import LARGEST_BODY, Answer, Server, Stream

from .client import ask, events, post, raw
from .test_guard import FOREIGN, LOCAL

HOSTS = [host for host in FOREIGN if host.isascii() and host == host.strip()]
"""What a header can hold."""
NO_TOKEN = [
    "/", "//", "/wrong/", "/wrong", "/?token={token}", "/x{token}/", "/{token}x/", "/{short}/", "/../{token}/",
    "http://evil.example/{token}/", "//evil.example/{token}/", "/%00/", "/\xff/",
]  # fmt: skip
NO_REQUEST = [
    b"", b"\r\n\r\n", b"\x00\x01\x02", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n",
]  # fmt: skip


class Echo:
    """A site that says what it was asked."""

    def __init__(self):
        self.asked: list = []
        self.let_go = threading.Event()

    def get(self, path, query, last):
        self.asked.append((path, query))
        if path == "fails":
            raise RuntimeError("a secret path /home/somebody")
        if path == "stream":
            return Stream(self._events(last))
        return Answer(f"<p>{path}") if path == "" else None

    def post(self, path, body):
        self.asked.append((path, body))
        return Answer("{}", "application/json")

    def _events(self, last):
        yield "one", {"last": last}, "1"
        while not self.let_go.wait(0.05):
            yield None
        yield "two", "a\nb", "2"


@pytest.fixture
def served():
    site = Echo()
    server = Server(site, 0)
    with server.running():
        yield server, site
        site.let_go.set()


def test_it_listens_on_this_machine_alone(served):
    server, _ = served
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert ask(server, "").status == 200


@pytest.mark.parametrize("host", LOCAL)
def test_any_port_of_this_machine_is_answered(served, host):
    server, _ = served
    assert ask(server, "", Host=host, Origin=f"http://{host}").status == 200
    assert post(server, "marks", {}, Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize("host", HOSTS)
def test_another_name_of_this_machine_is_refused(served, host):
    server, site = served
    assert ask(server, "", Host=host).status == 403
    assert post(server, "marks", {}, Host=host).status == 403
    assert site.asked == []


@pytest.mark.parametrize("origin", [f"http://{host}" for host in HOSTS] + ["null", "file://"])
def test_a_page_of_another_site_is_refused(served, origin):
    server, site = served
    for got in (ask(server, "", Origin=origin), post(server, "marks", {}, Origin=origin)):
        assert got.status == 403
        assert "access-control-allow-origin" not in got.headers
        assert server.token not in got.text
    assert site.asked == []


def test_without_a_host_or_with_two_nothing_is_answered(served):
    server, site = served
    path = f"/{server.token}/".encode()
    assert b" 403 " in raw(server, b"GET " + path + b" HTTP/1.0\r\n\r\n").splitlines()[0]
    two = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in raw(server, two).splitlines()[0]
    assert site.asked == []


@pytest.mark.parametrize("path", NO_TOKEN)
def test_without_the_token_nothing_is_answered(served, path):
    server, site = served
    asked = path.format(token=server.token, short=server.token[:-1]).encode("latin-1")
    first = raw(server, b"GET " + asked + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b" 403 " in first.splitlines()[0]
    assert server.token.encode() not in first
    assert site.asked == []


def test_no_token_in_a_post_either(served):
    server, site = served
    assert post(server, "/marks", {}).status == 403
    assert post(server, "/wrong/marks", {}).status == 403
    assert site.asked == []


def test_headers_of_every_answer(served):
    server, _ = served
    for got in (ask(server, ""), ask(server, "nothing"), ask(server, "/wrong/")):
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "no-referrer"
        assert got.headers["x-frame-options"] == "DENY"
        assert not [name for name in got.headers if name.startswith("access-control")]


def test_the_address_without_its_last_slash_leads_on(served):
    server, _ = served
    got = ask(server, f"/{server.token}")
    assert (got.status, got.headers["location"]) == (308, f"/{server.token}/")


def test_bodies_that_are_refused(served):
    server, site = served
    json_type = {"Content_Type": "application/json"}
    assert ask(server, "marks", "POST", b"{}").status == 415
    assert ask(server, "marks", "POST", b"{}", Content_Type="text/plain").status == 415
    assert ask(server, "marks", "POST", b"{", **json_type).status == 400
    assert ask(server, "marks", "POST", b"[" * 50_000, **json_type).status == 400
    assert ask(server, "marks", "POST", b"\xff\xfe", **json_type).status == 400
    assert post(server, "marks", "x" * LARGEST_BODY).status == 413
    for length in ("-1", "x", "1e3", "", "99999999999999999999", "²"):
        line = f"POST /{server.token}/marks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        got = raw(server, f"{line}Content-Length: {length}\r\n\r\n{{}}".encode())
        assert got.split()[1] in (b"411", b"413"), got
    chunked = f"{line}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode()
    assert raw(server, chunked).split()[1] == b"411"
    assert site.asked == []
    assert ask(server, "").status == 200


def test_a_huge_body_is_not_read(served):
    server, site = served
    head = f"POST /{server.token}/marks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as line:
        line.sendall(f"{head}Content-Length: {1 << 40}\r\n\r\n".encode())
        assert b" 413 " in line.recv(1 << 16)
    assert site.asked == []


def test_who_sends_all_of_a_refused_body_still_gets_the_answer(served):
    server, site = served
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as line:
            head = f"POST /{server.token}/marks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            line.sendall(f"{head}Content-Length: {1 << 20}\r\n\r\n".encode())
            line.sendall(b"x" * (1 << 20))
            line.shutdown(socket.SHUT_WR)
            assert b" 413 " in line.recv(1 << 16)
    assert site.asked == []


@pytest.mark.parametrize("text", NO_REQUEST)
def test_what_is_no_request_does_not_end_it(served, text):
    server, _ = served
    raw(server, text)
    assert ask(server, "").status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"])
def test_other_methods_are_none(served, method):
    server, site = served
    assert ask(server, "", method).status == 501
    assert site.asked == []


def test_a_page_that_fails_says_so_and_nothing_else(served, capfd):
    server, _ = served
    got = ask(server, "fails")
    assert got.status == 500
    assert "somebody" not in got.text
    assert "RuntimeError: a secret path" in capfd.readouterr().err
    assert ask(server, "").status == 200


def test_a_stream_says_where_it_goes_on(served):
    server, site = served
    stream = events(server, "stream", Last_Event_ID="7")
    assert next(stream) == ("one", {"last": "7"}, "1")
    site.let_go.set()
    assert list(stream) == [("two", "a\nb", "2")]


def test_no_more_than_so_many_streams(monkeypatch):
    monkeypatch.setattr(module, "MOST_STREAMS", 1)
    site = Echo()
    server = Server(site, 0)
    with server.running():
        first = events(server, "stream")
        next(first)
        assert ask(server, "stream").status == 503
        site.let_go.set()
        list(first)


def test_a_port_that_is_taken_is_left_for_the_next_unless_it_was_asked_for(served):
    server, site = served
    with pytest.raises(OSError, match="in use"):
        Server(site, server.server_port)
    module.PORT, kept = server.server_port, module.PORT
    try:
        other = Server(site, None)
    finally:
        module.PORT = kept
    assert other.server_port != server.server_port
    other.server_close()


def test_it_ends_with_streams_open(served):
    site = Echo()
    server = Server(site, 0)
    with server.running():
        stream = events(server, "stream")
        next(stream)
    with pytest.raises(OSError, match="refused"):
        ask(server, "")
    assert list(stream) == []
