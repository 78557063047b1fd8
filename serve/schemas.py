"""JSON Schemas of requests and answers, from the very models that validate them. Needs vLLM."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

from serve.fields import accepted

REQUESTS: dict[str, type[BaseModel]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
}
"""Model that validates the body of a route."""
ANSWERS: dict[str, type[BaseModel]] = {
    "chat": ChatCompletionResponse,
    "completions": CompletionResponse,
}
FIELDS = {route: frozenset(model.model_fields) for route, model in REQUESTS.items()}
"""Names that the engine knows, by route."""


def api_schemas() -> dict[str, Any]:
    """Return OpenAPI's `components.schemas`: `chat_request`, `chat_answer`, … and their parts."""
    found: dict[str, Any] = {}
    for kind, models in (("request", REQUESTS), ("answer", ANSWERS)):
        for route, model in models.items():
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            found.update(schema.pop("$defs", {}))
            if kind == "request":
                _close(schema, FIELDS[route])
            found[f"{route}_{kind}"] = schema
    return found


def _close(schema: dict[str, Any], known: frozenset[str]) -> None:
    """Say what is really accepted: vLLM's models let any field through, the server does not."""
    names = accepted(known)
    schema["properties"] = {name: schema["properties"].get(name, {}) for name in names}
    schema["properties"]["model"] = {"type": "string", "description": "A name of /v1/models."}
    schema["required"] = sorted({*schema.get("required", ()), "model"})
    schema["additionalProperties"] = False
