"""The bodies of checked answers: the teacher's in the student's place, and whole ones as events."""

from __future__ import annotations

import json
import time
from typing import Any

from serve.quality.assurance import TeacherAnswer


def is_checkable(route: str, payload: dict[str, Any]) -> bool:
    """Whether the request asks for one answer in text, which is what checks are made for."""
    single = payload.get("n") in (None, 1) and payload.get("best_of") in (None, 1)
    if route == "chat":
        return single and (not payload.get("tools") or payload.get("tool_choice") == "none")
    # Several prompts, prompts of tokens and echoed prompts have no one answer of their own.
    return single and isinstance(payload.get("prompt"), str) and not payload.get("echo")


def variables_of(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Return the prompt's variables that `metadata.variables` brings as JSON, if it does."""
    metadata = payload.get("metadata")
    given = metadata.get("variables") if isinstance(metadata, dict) else None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, dict) else None


def text_of(content: bytes, route: str) -> str:
    """Return the text of a response's first choice."""
    choice = json.loads(content)["choices"][0]
    return (choice["message"]["content"] if route == "chat" else choice["text"]) or ""


def in_place_of(content: bytes, route: str, answer: TeacherAnswer, *, model: str) -> bytes:
    """Return the student's response with the teacher's words, tokens and name in it."""
    response = json.loads(content) | _said(route, answer, model=model)
    return json.dumps(response, ensure_ascii=False).encode()


def body_of(route: str, answer: TeacherAnswer, *, model: str, request_id: str) -> bytes:
    """Return a response of the teacher's own, where no student was asked."""
    chat = route == "chat"
    response = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        **_said(route, answer, model=model),
    }
    return json.dumps(response, ensure_ascii=False).encode()


def _said(route: str, answer: TeacherAnswer, *, model: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    if route == "chat":
        choice["message"] = {"role": "assistant", "content": answer.text}
    else:
        choice["text"] = answer.text
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    return {"model": model, "choices": [choice], "usage": usage}


def as_events(content: bytes, route: str, payload: dict[str, Any]) -> bytes:
    """Return a whole response as the server-sent events of a stream.

    A chat answer is one delta and its end, a text answer one chunk; `stream_options.include_usage`
    adds the usage. See OpenAI's API reference, "chat completion chunk".
    """
    response = json.loads(content)
    common = {key: response.get(key) for key in ("id", "created", "model")}
    choice = response["choices"][0]
    chunks: list[dict[str, Any]] = []
    if route == "chat":
        common["object"] = "chat.completion.chunk"
        message = {k: v for k, v in choice["message"].items() if v not in (None, [])}
        for delta, finish in ((message, None), ({}, choice["finish_reason"])):
            given = choice.get("logprobs") if finish is None else None
            part = {"index": 0, "delta": delta, "logprobs": given, "finish_reason": finish}
            chunks.append({**common, "choices": [part]})
    else:
        common["object"] = "text_completion"
        chunks.append({**common, "choices": [choice]})
    options = payload.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        chunks.append({**common, "choices": [], "usage": response["usage"]})
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def unstreamed(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the request as one that is answered whole."""
    return {k: v for k, v in payload.items() if k not in ("stream", "stream_options")}
