"""A real HTTP server on loopback that speaks the OpenAI protocol and injects faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import serving

Respond = Callable[[dict[str, Any], int], tuple[int, Any]]
"""(request body, number of this request) -> (status, text of the answer or a JSON body)."""


class OpenAIServer:
    """Counts what it was asked; `respond` decides what it answers."""

    def __init__(self, respond: Respond):
        self.respond = respond
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    number = len(outer.requests)
                status, answer = outer.respond(body, number)
                payload = answer
                if status == 200 and isinstance(answer, str):
                    payload = completion(body, answer)
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    """A chat completion whose token counts are its word counts."""
    words_in = sum(len(m["content"].split()) for m in body["messages"])
    words_out = len(text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": words_in,
            "completion_tokens": words_out,
            "total_tokens": words_in + words_out,
        },
    }


@contextmanager
def openai_server(respond: Respond) -> Iterator[OpenAIServer]:
    """Run a server for the block."""
    server = OpenAIServer(respond)
    with serving(server.server):
        yield server
