"""A process that asks a hub which misbehaves: `python -m tests.trainer.hub_scenarios TOKENIZER_FOLDER`.

The hub is a server on 127.0.0.1; what it does depends on the owner that a name begins with. Prints a JSON object:
scenario -> {"error", "hint", "asked": questions that reached the server, "first": of them}. One process for all:
importing takes longest.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAUSE, LIMIT = 0.6, 0.4  # seconds between the pieces of a slow download; hub.FIRST_ANSWER here
ANSWERS = {
    "busy": (503, {}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "anonymous": (401, {}),
    "forbidden": (403, {}),
    "portal": (200, {"Content-Type": "text/html"}),
    "nowhere": (404, {"Content-Type": "text/html"}),
}


class Hub(BaseHTTPRequestHandler):
    files: Path
    asked: list[str]
    ends = threading.Event()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if "agent-harnesses" not in self.path:  # huggingface_hub's own question, once a process
            self.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        owner = next((part for part in parts if part in (*ANSWERS, "silent", "garbage", "slow", "stalls")), "")
        if owner == "silent" or (owner == "stalls" and self.command == "GET"):
            self.ends.wait()
        elif owner == "garbage":
            self.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif owner in ANSWERS:
            status, headers = ANSWERS[owner]
            self._send(status, headers, b"<html>Welcome</html>")
        else:
            self._serve(self.files / parts[-1])

    def _serve(self, file: Path) -> None:
        if "resolve" not in self.path or not file.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "1" * 40}, b"")
            return
        content = file.read_bytes()
        self.send_response(200)
        for key, value in (("ETag", f'"{file.name}"'), ("X-Repo-Commit", "1" * 40), ("Content-Length", len(content))):
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            for begin in range(0, len(content), len(content) // 3 + 1):
                self.wfile.write(content[begin : begin + len(content) // 3 + 1])
                self.wfile.flush()
                if file.name == "tokenizer.json":
                    time.sleep(PAUSE)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(tokenizer: str) -> tuple[ThreadingHTTPServer, list[str]]:
    """Starts the hub and makes this process ask it; the server, and what reaches it."""
    handler = type("OneHub", (Hub,), {"files": Path(tokenizer), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": tempfile.mkdtemp(),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return server, handler.asked


def main(tokenizer: str) -> None:
    server, reached = serve(tokenizer)
    from lora_train.trainer import hub
    from lora_train.trainer.errors import UserError

    hub.FIRST_ANSWER = LIMIT
    found: dict[str, Any] = {}

    def ask(scenario: str, question: Callable[[], Any]) -> None:
        hub._answered.clear()
        hub._down.clear()
        reached.clear()
        try:
            found[scenario] = {"answer": question()}
        except UserError as error:
            (problem,) = error.problems
            found[scenario] = {"error": problem.error, "hint": problem.hint}
        found[scenario] |= {"asked": len(reached), "first": reached[0] if reached else ""}

    for owner in ("silent", "garbage", "slow", *ANSWERS):
        for kind in ("model", "dataset"):
            ask(f"first {kind} {owner}", lambda name=f"{owner}/name", kind=kind: hub.ask_first(name, kind=kind))
    found["imported"] = sorted({"torch", "transformers", "datasets"} & sys.modules.keys())
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.data.sources import open_source
    from lora_train.trainer.model.load import load_tokenizer, read_model_config

    def config(name: str) -> Config:
        return Config.model_validate({"model": {"name_or_path": name}, "data": {"train": "x"}})

    for owner in ("silent", "garbage", *ANSWERS):
        ask(f"tokenizer {owner}", lambda name=f"{owner}/model": len(load_tokenizer(config(name))))
        ask(f"data {owner}", lambda name=f"{owner}/rows": open_source(name).name)

    ask("model silent", lambda: read_model_config(config("silent/model")))
    ask("tokenizer slow", lambda: len(load_tokenizer(config("slow/model"))))
    ask("first cached", lambda: hub.ask_first("slow/model"))
    ask("tokenizer stalls", lambda: len(load_tokenizer(config("stalls/model"))))
    os.environ.pop("HF_TOKEN")
    ask("tokenizer anonymous, no token", lambda: len(load_tokenizer(config("anonymous/model"))))
    look_up = socket.getaddrinfo
    for scenario, no_address in (("no address", socket.gaierror(-2, "Name or service not known")), ("hangs", None)):

        def fail(*_: Any, no_address: OSError | None = no_address, **__: Any) -> Any:
            if no_address is None:
                Hub.ends.wait()
            raise no_address or OSError

        socket.getaddrinfo = fail
        ask(f"tokenizer {scenario}", lambda: len(load_tokenizer(config("busy/model"))))
        ask(f"data {scenario}", lambda: open_source("busy/rows").name)
    socket.getaddrinfo = look_up
    server.shutdown()
    server.server_close()
    ask("tokenizer refused", lambda: len(load_tokenizer(config("busy/model"))))
    ask("data refused", lambda: open_source("busy/rows").name)
    ask("tokenizer refused but cached", lambda: len(load_tokenizer(config("slow/model"))))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
