"""What validates requests, and its JSON Schemas: vLLM's own models. Needs vLLM."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

from serve.engine_errors import explain_validation_error
from serve.errors import bad_request
from serve.fields import accepted

log = logging.getLogger("ray.serve")

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


def validated(route: str, payload: dict[str, Any]) -> Any:
    """Return the request of a route as vLLM's model; ApiError (400) names the wrong field."""
    try:
        return REQUESTS[route].model_validate(payload)
    except ValidationError as error:
        raise explain_validation_error(error) from None
    except Exception as error:
        # vLLM 0.29's own checks run before the types are checked, and trip over a wrong type:
        # {"structured_outputs": "x"} is an AttributeError there.
        log.info("a request could not be validated", exc_info=error)
        raise bad_request(
            "A field of the request has the wrong type; /docs lists the fields and their types.",
            code="invalid_value",
        ) from None


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
