"""Uploading the adapter, against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ..test_cli import write_config


class Hub(BaseHTTPRequestHandler):
    """Takes one repository; remembers who asked for what, and the files of the commit."""

    asked: list[str]
    files: dict[str, bytes]
    tokens: set[str]

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _seen(self) -> bytes:
        self.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        if "/commit/" in self.path:
            self.tokens.add(self.headers.get("Authorization", ""))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self._seen()
        known = {"/api/whoami-v2": {"name": "someone", "type": "user"}}
        self._answer(known.get(self.path, {"error": "not here"}), 200 if self.path in known else 404)

    def do_POST(self) -> None:
        body = self._seen()
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self._answer({"url": f"http://{self.headers['Host']}/someone/{name}", "name": f"someone/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/someone/my-adapter/commit/0",
                    "hookOutput": "",
                }
            )
        else:
            self._answer({}, 404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("OneHub", (Hub,), {"asked": [], "files": {}, "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_the_adapter_is_uploaded_at_the_end(cli, tiny_models, tmp_path, hub):
    handler, endpoint = hub
    config = write_config(tmp_path, tiny_models["llama"], max_steps=2, push_to_hub=True, hub_model_id="my-adapter")
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    result = cli("--config", config, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"hub    uploaded to {endpoint}/someone/my-adapter" in result.stdout
    folder = next(tmp_path.glob("**/adapter"))
    on_disk = {path.name: path.read_bytes() for path in folder.iterdir()}
    shared = {name: handler.files[name] for name in on_disk}
    own, others = (json.loads(files.pop("adapter_config.json")) for files in (on_disk, shared))
    assert shared == on_disk
    assert "tokenizer.json" in shared
    # a base on this machine's disk is no place for others
    assert others == own | {"base_model_name_or_path": "llama"} != own
    assert handler.tokens == {"Bearer hf_test"}  # of the commit


def test_a_failed_upload_keeps_the_adapter_and_says_how_to_try_again(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=2, push_to_hub=True)
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
    result = cli("--config", config, env=env)
    assert result.returncode == 1
    (weights,) = tmp_path.glob("**/adapter/adapter_model.safetensors")
    assert "could not be uploaded" in result.stdout
    assert "refuses the connection" in result.stdout
    assert "now 127.0.0.1:9 refuses the connection" in result.stderr  # before the run
    assert "Retrying" not in result.stderr
    assert f"hint: it is on disk; try again with `hf upload run {weights.parent}`" in result.stdout


def test_nobody_logged_in_is_an_error_before_the_run(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], push_to_hub=True)
    result = cli("--config", config, env={"HF_TOKEN": "", "HF_HOME": str(tmp_path / "nobody")})
    assert result.returncode == 2
    assert "nobody is logged in to the hub" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_token_that_the_hub_does_not_take_is_an_error_before_the_run(cli, tiny_models, tmp_path, hub, monkeypatch):
    handler, endpoint = hub
    monkeypatch.setattr(handler, "do_GET", lambda self: self._answer({"error": "Invalid credentials"}, 401))
    config = write_config(tmp_path, tiny_models["llama"], push_to_hub=True)
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_old"}
    result = cli("--config", config, env=env)
    assert result.returncode == 2
    assert "wrong, expired or revoked" in result.stderr
    assert not (tmp_path / "run").exists()
