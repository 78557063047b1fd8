"""Requests that no server should fall over: wrong names, values, bodies and headers, by seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

CLIENTS = 8
TIMEOUT_S = 150.0
QUESTION = [{"role": "user", "content": "Bank: ACME USD 12.50; ERP: none"}]
NAMES = [
    "reconcile",
    "reconcile@v1",
    "../../etc/passwd",
    "a/../b@v1",
    "x\u0000y",
    "",
    "@",
    "@v",
    "reconcile@",
    "reconcile@v-1",
    "%2e%2e%2f",
    "tiny-llama\n",
    "💥" * 50,
    "s3://x/y",
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**18,
    1e308,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    {"": 1},
    "\ud7ff",
    [{"role": "user"}],
    [{"role": 3, "content": []}],
    "\u0000",
]
FIELDS = [
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "n",
    "stop",
    "logprobs",
    "tools",
    "seed",
    "tool_choice",
    "response_format",
    "stream_options",
    "structured_outputs",
    "echo",
    "logit_bias",
    "top_k",
    "user",
    "max_completion_tokens",
    "chat_template",
    "documents",
    "prompt_embeds",
    "truncate_prompt_tokens",
    "allowed_token_ids",
    "bad_words",
    "use_beam_search",
    "vllm_xargs",
    "suffix",
    "reasoning_effort",
    "stream",
    "???",
]


@dataclass
class Outcome:
    """What a server made of them."""

    statuses: Counter[int] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    """Answers of 5xx and those that show a stack trace or a file of ours."""


def draw(rng: random.Random) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
    """Return a request that is wrong in one to four places: path, body, headers."""
    body: Any = {"model": rng.choice(NAMES), "max_tokens": 1, "messages": QUESTION, "prompt": "x"}
    path = rng.choice(["chat/completions", "completions"])
    body.pop("prompt" if path.startswith("chat") else "messages")
    for _ in range(rng.randrange(1, 4)):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    data = bytearray(json.dumps(body).encode())
    style = rng.randrange(4)
    if style == 0:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif style == 1:
        data = data[: rng.randrange(len(data))]
    headers = {"x-request-id": rng.choice(["a", "../x", "é", "-", "x" * 3000, "%0d%0a"])}
    if rng.random() < 0.1:
        headers["content-type"] = rng.choice(["text/plain", "application/json; charset=x", "\\"])
    if rng.random() < 0.1:
        headers["serve_multiplexed_model_id"] = "../../etc"
    return path, bytes(data), [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]


def send(url: str, *, count: int, seed: int, headers: Mapping[str, str] | None = None) -> Outcome:
    """Send so many to the API below `url`."""
    rng = random.Random(seed)
    always = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    requests = [draw(rng) for _ in range(count)]

    def one_client(number: int) -> Outcome:
        found = Outcome()
        with httpx.Client(base_url=f"{url}/v1/", timeout=TIMEOUT_S) as http:
            for path, body, own in requests[number::CLIENTS]:
                got = http.post(path, content=body, headers=[*own, *always])
                found.statuses[got.status_code] += 1
                if got.status_code >= 500 or "Traceback" in got.text or ".py" in got.text:
                    found.bad.append(f"{path} {body!r}: {got.status_code} {got.text[:500]}")
        return found

    total = Outcome()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for found in pool.map(one_client, range(CLIENTS)):
            total.statuses += found.statuses
            total.bad += found.bad
    return total
