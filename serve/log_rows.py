"""One answer as a row of the request log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from cluster.example import example_id
from serve.observe import Usage
from serve.quality.answers import variables_of
from serve.quality.gate import Checked
from serve.requests import prompt_messages
from serve.routing.router import Difficulty


def row_maker(
    payload: dict[str, Any],
    *,
    request_id: str,
    model_answered: str,
    route: str,
    usage: Usage,
    status: int,
    latency_s: float,
    ttft_s: float | None,
    checked: Checked | None,
    difficulty: Difficulty | None = None,
) -> Callable[[], dict[str, Any]]:
    """Return what makes the row (`serve.request_log.SCHEMA`): it is made off the request path."""
    created_at = time.time()
    probability = difficulty.probability if difficulty else None
    routed_to = difficulty.routed_to if difficulty else None

    def row() -> dict[str, Any]:
        messages = prompt_messages(payload)
        variables = variables_of(payload)
        return {
            "request_id": request_id,
            "example_id": example_id(messages),
            "model_asked": str(payload.get("model"))[:256],
            "model_answered": model_answered,
            "route": route,
            "messages": json.dumps(messages, ensure_ascii=False),
            "variables": json.dumps(variables, ensure_ascii=False) if variables else None,
            "completion": usage.text,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "latency_s": latency_s,
            "ttft_s": ttft_s,
            "status": status,
            "created_at": int(created_at * 1000),
            "difficulty": probability,
            "routed_to": routed_to,
            **(checked.log_fields if checked else {}),
        }

    return row
