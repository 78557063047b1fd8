"""A loopback server that speaks enough of the OpenAI protocol to be asked, and costs little itself.

    python -m jobs.bench.openai_server --latency 2 [--throttle 0.05 --hang 0.02 --garble 0.01]

Prints its port. The answer to a prompt depends on nothing but the prompt. Faults are drawn by the
prompt and how often it has been asked, so that both sides of a comparison meet the same ones.
`GET /stats` returns what it has seen.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from typing import Any

HANG_S = 30.0
"""A hanging request is longer than any time-out of the benchmark."""


class State:
    """What the server has seen, and what it does to whom."""

    def __init__(self, *, latency_s: float, throttle: float, hang: float, garble: float):
        """Shares of requests that are refused, never answered, or answered with garbage."""
        self.latency_s = latency_s
        self.faults = (("throttle", throttle), ("hang", hang), ("garble", garble))
        self.asked: Counter[str] = Counter()
        self.finished: list[float] = []
        self.answered: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def fault(self, prompt: str) -> str:
        """Name of the fault that this attempt at the prompt meets, or ""."""
        self.asked[prompt] += 1
        seed = hashlib.sha256(f"{prompt}/{self.asked[prompt]}".encode()).digest()
        draw = int.from_bytes(seed[:8], "big") / 2**64
        for name, share in self.faults:
            if draw < share:
                return name
            draw -= share
        return ""

    def stats(self) -> dict[str, Any]:
        """Times of the answers, seconds, and counts."""
        return {
            "finished": self.finished,
            "sent": dict(self.sent),
            "prompts": len(self.asked),
            "asked": dict(self.asked),
            "answered_twice": sum(count > 1 for count in self.answered.values()),
        }


class Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length and keep-alive, no more."""

    def __init__(self, state: State):
        """One a connection."""
        self._state = state
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                if line[:15].lower() == b"content-length:":
                    length = int(line[15:])
            if len(rest) < length:
                return
            body, self._buffer = rest[:length], rest[length:]
            if head.startswith(b"GET"):
                self._send(200, json.dumps(self._state.stats()).encode())
            else:
                self._answer(body)

    def _answer(self, body: bytes) -> None:
        request = json.loads(body)
        prompt = request["messages"][-1]["content"]
        loop = asyncio.get_running_loop()
        fault = self._state.fault(prompt)
        self._state.sent[fault or "answer"] += 1
        if fault == "throttle":
            self._send(429, b'{"error": {"message": "slow down", "type": "rate_limit"}}')
        elif fault == "hang":
            loop.call_later(HANG_S, self._transport.close)
        elif fault == "garble":
            loop.call_later(self._state.latency_s, self._send, 200, b'{"choices": [')
        else:
            digest = hashlib.sha256(prompt.encode()).hexdigest()
            payload = {
                "id": digest[:12], "object": "chat.completion", "created": 0,
                "model": request["model"],
                "choices": [{
                    "index": 0, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"answer {digest}"},
                }],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
            }  # fmt: skip
            data = json.dumps(payload).encode()
            loop.call_later(self._state.latency_s, self._finish, prompt, data)

    def _finish(self, prompt: str, data: bytes) -> None:
        if not self._transport.is_closing():
            self._state.finished.append(time.monotonic())
            self._state.answered[prompt] += 1
            self._send(200, data)

    def _send(self, status: int, data: bytes) -> None:
        if self._transport.is_closing():
            return
        more = b"Retry-After: 1\r\n" if status == 429 else b""
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
            % (status, more, len(data))
            + data
        )


async def serve(state: State) -> None:
    """Listen on a free port, print it, answer until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("latency", "throttle", "hang", "garble"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    options = parser.parse_args()
    state = State(
        latency_s=options.latency,
        throttle=options.throttle,
        hang=options.hang,
        garble=options.garble,
    )
    asyncio.run(serve(state))


if __name__ == "__main__":
    main()
