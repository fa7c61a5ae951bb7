"""Requests that get no answer are sent again with patience; a refusal is one sentence; a key goes into the header alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from semalign.config import ServerConfig
from semalign.errors import ConfigError, ModelError
from semalign.run import web
from semalign.run.web import Server, json_from

CODES: list[int] = []
CUT: list[int] = []
"""Bytes that an answer promises and does not send."""
SEEN: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        SEEN.append(dict(self.headers))
        code = CODES.pop(0) if CODES else 200
        missing = CUT.pop(0) if CUT else 0
        data = json.dumps({"data": [{"id": "first"}], "path": self.path}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data) + missing))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    CODES.clear()
    CUT.clear()
    SEEN.clear()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(web.time, "sleep", found.append)
    return found


def test_what_says_come_back_is_asked_again_after_longer_and_longer(root: str, waits: list[float]) -> None:
    CODES[:] = [503, 429, 500]
    assert json_from(f"{root}/x", None, patience=5, retries=3)["path"] == "/x"
    assert waits == [0.5, 1.0, 2.0] and len(SEEN) == 4


@pytest.mark.parametrize("code", [200, 500])
def test_an_answer_that_breaks_off_is_asked_for_again(root: str, waits: list[float], code: int) -> None:
    CODES[:], CUT[:] = [code], [50]
    assert json_from(f"{root}/x", None, patience=5, retries=1)["path"] == "/x"
    CODES[:], CUT[:] = [code], [50]
    with pytest.raises(ModelError, match="gave no answer" if code == 200 else "refused a request"):
        json_from(f"{root}/x", None, patience=5)
    assert waits == [0.5]


def test_no_wait_is_longer_than_the_longest(root: str, waits: list[float]) -> None:
    CODES[:] = [503] * 9
    json_from(root, None, patience=5, retries=9)
    assert waits[-2:] == [30.0, 30.0]


def test_a_refusal_is_not_repeated(root: str, waits: list[float]) -> None:
    CODES[:] = [404]
    with pytest.raises(ModelError, match=r"refused a request \(404: .*first"):
        json_from(root, None, patience=5, retries=3)
    assert waits == [] and len(SEEN) == 1


def test_after_all_retries_the_sentence_counts_them(root: str) -> None:
    CODES[:] = [503] * 3
    with pytest.raises(ModelError, match=r"refused a request \(503.*It was asked 3 times\."):
        json_from(root, None, patience=5, retries=2)


def test_a_key_is_sent_and_said_nowhere(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret-word")
    server = Server.of(ServerConfig(f"{root}/v1/", key_variable="SERVER_KEY", retries=0))
    assert (
        server.root == root and server.name == "first" and SEEN[-1]["Authorization"] == "Bearer secret-word"
    )
    CODES[:] = [401]
    with pytest.raises(ModelError) as caught:
        server.json("/v1/models")
    assert "secret-word" not in str(caught.value) + repr(server)
    with pytest.raises(ConfigError, match="that is set, got 'OTHER_KEY'"):
        Server.of(ServerConfig(root, key_variable="OTHER_KEY"))


def test_a_named_model_is_not_asked_for(root: str) -> None:
    assert Server.of(ServerConfig(root, model="mine")).name == "mine" and SEEN == []
