"""Which headers are this machine's own."""

from __future__ import annotations

import pytest
from lora_train.instrument.board.serve.guard import is_host, is_origin, is_token, new_token

LOCAL = ["localhost", "LOCALHOST:80", "localhost:9000", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:7007"]
FOREIGN = [
    "", "evil.example", "evil.example:7007", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io:80",
    "localhost:", "localhost:80:80", "localhost:x", "localhost/", "localhost@evil.example", "evil.example@localhost",
    "127.0.0.2", "0.0.0.0", "::1", "[::1", "[::2]", "localhost\n", " localhost", "localhost:80 ", "192.168.0.1",
    "2130706433", "localhost:123456", "l\u043ecalhost",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_by_any_port(host):
    assert is_host(host)
    assert is_origin(f"http://{host}")
    assert is_origin(f"https://{host}")


@pytest.mark.parametrize("host", FOREIGN)
def test_another_host(host):
    assert not is_host(host)
    assert not is_origin(f"http://{host}")


def test_a_host_has_to_be_named_and_an_origin_need_not_be():
    assert not is_host(None)
    assert is_origin(None)


@pytest.mark.parametrize("origin", ["null", "", "file://", "localhost", "ftp://localhost", "http:localhost", "http://"])
def test_an_origin_that_is_none(origin):
    assert not is_origin(origin)


def test_tokens():
    one, other = new_token(), new_token()
    assert one != other
    assert len(one) >= 22  # 128 bits in base64
    assert is_token(one, one)
    for wrong in ("", one[:-1], one + "x", other, one.swapcase(), "한글", "\udcff"):
        assert not is_token(wrong, one)
