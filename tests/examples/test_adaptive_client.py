"""The adaptive client against a local fake of the OpenAI protocol, as vLLM and SGLang speak it. No server with a GPU was asked."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs pip install 't2eval[serving]'")

from t2eval.paths import experts_dir  # noqa: E402

BASE = "the-base"


class Fake(ThreadingHTTPServer):
    """A server that has some adapters, and remembers what it was asked."""

    def __init__(self, adapters: list[str], owner: str = "vllm") -> None:
        super().__init__(("127.0.0.1", 0), Protocol)
        self.adapters, self.owner, self.asked, self.broken = adapters, owner, [], False
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Protocol(BaseHTTPRequestHandler):
    """What the client needs of /v1."""

    server: Fake

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _json(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self) -> None:
        card = {"object": "model", "created": 0, "owned_by": self.server.owner}
        cards = [{"id": BASE, "parent": None, **card}, *({"id": name, "parent": BASE, **card} for name in self.server.adapters)]
        self._json(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked))
        sglang = self.server.owner == "sglang"
        names = [BASE, *(f"{BASE}:{name}" if sglang else name for name in self.server.adapters)]
        if asked["model"] not in names:
            return self._json(404, {"error": {"message": f"The model `{asked['model']}` does not exist.", "type": "NotFoundError"}})
        if self.server.broken:
            return self._json(400, {"error": {"message": "max_tokens is too large", "type": "BadRequestError"}})
        assert asked["stream"] is True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        chat = "chat" in self.path
        for piece in ("se", "ven"):
            choice = {"index": 0, "finish_reason": None, **({"delta": {"content": piece}} if chat else {"text": piece})}
            head = {"id": "1", "object": "chunk", "created": 0, "model": asked["model"]}
            self.wfile.write(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        return None


@pytest.fixture(scope="module")
def client(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adaptive_client", root / "examples" / "adaptive_client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len((root / "examples" / "adaptive_client.py").read_text().splitlines()) <= 80
    return module


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    made: list[Fake] = []
    yield made
    for each in made:
        each.shutdown()
        each.server_close()


@pytest.fixture(scope="module")
def questions() -> dict[str, str]:
    """A question of each skill, from the embedded tasks."""
    from t2eval.environment.environment import Environment

    names = {"math": "embedded_math_seen", "code": "embedded_code_seen"}
    return {label: Environment(name).examples("train", limit=1)[0].doc["question"] for label, name in names.items()}


def run(client: ModuleType, monkeypatch: pytest.MonkeyPatch, server: str, question: str, *options: str) -> None:
    library = str(experts_dir() / "library" / "seed-0")
    monkeypatch.setattr(sys, "argv", ["adaptive_client.py", question, "--server", server, "--experts", library, *options])
    client.main()


def test_the_adapter_of_the_chosen_expert_answers(
    client: ModuleType, fakes: list[Fake], questions: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.append(server := Fake(["math", "code", "reasoning"]))
    for label, question in questions.items():
        run(client, monkeypatch, server.url, question, "--prompt", r"Q: {question}\nA:", "--stop", r"\n")
        path, asked = server.asked[-1]
        assert (path, asked["model"], asked["prompt"], asked["stop"]) == ("/v1/completions", label, f"Q: {question}\nA:", "\n")
        assert capsys.readouterr().out.strip() == f"[{label}] seven"
    run(client, monkeypatch, server.url, questions["math"], "--chat")
    assert server.asked[-1][0] == "/v1/chat/completions"
    assert server.asked[-1][1]["messages"] == [{"role": "user", "content": questions["math"]}]
    assert capsys.readouterr().out.strip() == "[math] seven"


def test_sglang_wants_the_base_before_the_name(
    client: ModuleType, fakes: list[Fake], questions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.append(server := Fake(["math", "code", "reasoning"], "sglang"))
    run(client, monkeypatch, server.url, questions["math"])
    assert server.asked[-1][1]["model"] == f"{BASE}:math"


def test_the_base_model_answers_what_no_expert_is_for(client: ModuleType, fakes: list[Fake]) -> None:
    for owner in ("vllm", "sglang"):
        fakes.append(server := Fake(["math"], owner))
        assert client.served(openai.OpenAI(base_url=server.url, api_key="none"), None) == BASE


def test_what_goes_wrong_is_said_in_one_line(
    client: ModuleType, fakes: list[Fake], questions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.append(server := Fake(["code"]))
    with pytest.raises(SystemExit, match="The server has no 'math', only the-base, code: export it"):
        run(client, monkeypatch, server.url, questions["math"])
    assert not server.asked  # no other model was asked in its place
    fakes.append(broken := Fake(["math"]))
    broken.broken = True
    with pytest.raises(SystemExit, match="max_tokens is too large"):
        run(client, monkeypatch, broken.url, questions["math"])
    there = openai.OpenAI(base_url=broken.url, api_key="none")
    with pytest.raises(openai.NotFoundError, match="The model `maths` does not exist"):
        list(client.answer(there, "maths", "x", False))
    with pytest.raises(SystemExit, match="Connection error"):
        monkeypatch.setenv("OPENAI_MAX_RETRIES", "0")
        run(client, monkeypatch, "http://127.0.0.1:9/v1", questions["math"])
