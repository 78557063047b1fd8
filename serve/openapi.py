"""The OpenAPI description of the gateway, and a page that shows it without any network."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from functools import cache
from importlib.resources import files
from typing import Any

from serve.admin import AdminRequest
from serve.errors import not_ready

log = logging.getLogger("ray.serve")

Schema = dict[str, Any]

ASK_TIMEOUT_S = 10.0

ERROR_SCHEMA: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
MODEL_SCHEMA: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "root", "parent"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "root": {"type": "string", "description": "The immutable version that answers now."},
        "parent": {"type": ["string", "null"], "description": "The base model."},
    },
}
MODELS_SCHEMA: Schema = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/model"}},
    },
}
ERRORS = {
    400: "The request is wrong; `message` says what.",
    401: "No valid API key.",
    403: "The key may not do this, or a web page of another origin called.",
    404: "No such model, or the key may not use it.",
    405: "No such method.",
    408: "The body did not arrive in time.",
    409: "Somebody else's change came first, or the state does not allow it.",
    413: "The body is too large.",
    429: "A limit of the key is reached; `Retry-After` says for how long.",
    500: "The server failed; its log has the cause under the request id.",
    503: "Overloaded or not ready; `Retry-After` says when to come back.",
    504: "The answer was not finished within the deadline.",
}


def describe_api(schemas: Schema, *, with_keys: bool) -> Schema:
    """Return the OpenAPI 3.1 document; `schemas` are those of `serve.schemas.api_schemas`."""
    admin = AdminRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "Distillery",
            "version": importlib.metadata.version("distillery"),
            "description": "OpenAI-compatible. vLLM's own sampling fields are accepted too.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _completion("chat", "Answer a conversation.")},
            "/v1/completions": {"post": _completion("completions", "Continue a text.")},
            "/v1/models": {"get": _get("Models, aliases and versions to ask for.", "models")},
            "/v1/models/{model}": {
                "get": _get("One of them.", "model")
                | {
                    "parameters": [
                        {
                            "name": "model",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string", "minLength": 1},
                        }
                    ]
                }
            },
            "/admin/status": {"get": _get("Adapters, aliases, splits, replicas (admin).", None)},
            "/admin/metrics": {"get": _get("Figures of the last five minutes (admin).", None)},
            "/admin/adapters/{action}": {"post": _admin_action()},
            "/health": {"get": _get("The gateway lives.", None, public=True)},
            "/ready": {"get": _get("Replicas are warm, aliases are loaded.", None, public=True)},
        },
        "components": {
            "schemas": schemas
            | admin.pop("$defs", {})
            | {
                "admin_request": admin,
                "error": ERROR_SCHEMA,
                "model": MODEL_SCHEMA,
                "models": MODELS_SCHEMA,
            }
        },
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _completion(route: str, summary: str) -> Schema:
    answer = {
        "description": "The answer; with `stream` server-sent events that end with `[DONE]`.",
        "headers": {"x-distillery-model": {"schema": {"type": "string"}}},
        "content": {
            "application/json": _ref(f"{route}_answer"),
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {
        "operationId": route,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": _ref(f"{route}_request")},
        },
        "responses": {"200": answer} | _errors(*(ERRORS.keys() - {409})),
    }


def _admin_action() -> Schema:
    action = {
        "name": "action",
        "in": "path",
        "required": True,
        "schema": {"enum": ["promote", "rollback", "canary", "end", "pin", "unpin", "unload"]},
    }
    done = {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}
    return {
        "operationId": "admin",
        "summary": "What `distillery adapters` does (admin).",
        "parameters": [action],
        "requestBody": {
            "required": True,
            "content": {"application/json": _ref("admin_request")},
        },
        "responses": {"200": done} | _errors(400, 401, 403, 404, 408, 409, 413),
    }


def _get(summary: str, schema: str | None, *, public: bool = False) -> Schema:
    content = _ref(schema) if schema else {"schema": {"type": "object"}}
    found: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": content}},
        },
    }
    if public:
        unready = {"description": "Not yet.", "content": {"application/json": content}}
        return found | {"security": [], "responses": found["responses"] | {"503": unready}}
    return found | {"responses": found["responses"] | _errors(401, 403, 404)}


def _errors(*statuses: int) -> Schema:
    return {
        str(status): {
            "description": ERRORS[status],
            "content": {"application/json": _ref("error")},
        }
        for status in statuses
    }


def _ref(name: str) -> Schema:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def render_page(document: Schema) -> str:
    """Return the description as one HTML page that loads nothing."""
    schemas = document["components"]["schemas"]
    operations = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            operations.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": operation["summary"],
                    "fields": _fields(schemas[name]) if name else [],
                    "responses": {s: r["description"] for s, r in operation["responses"].items()},
                }
            )
    return _template().render(
        info=document["info"], operations=operations, keys="security" in document
    )


def _fields(schema: Schema) -> list[Schema]:
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "type": _type(field),
            "default": field.get("default"),
            "required": name in required,
            "text": field.get("description", ""),
        }
        for name, field in sorted(schema["properties"].items(), key=lambda f: f[0] not in required)
    ]


def _type(field: Schema) -> str:
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_type(part) for part in field["anyOf"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    return str(field.get("type", "any"))


@cache
def _template() -> Any:
    from jinja2 import Environment

    text = files("serve").joinpath("openapi.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


class ApiPages:
    """The description and its page, made once from what a replica says its models are."""

    def __init__(self, replicas: Any, *, with_keys: bool):
        self._ask = replicas.options(method_name="api_schemas")
        self._with_keys = with_keys
        self._document: Schema | None = None

    async def document(self) -> Schema:
        """Return the OpenAPI document; ApiError (503) while no replica is there to ask."""
        if self._document is None:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    schemas = await self._ask.remote()
            except Exception as error:
                log.warning("no replica describes its requests: %s", type(error).__name__)
                raise not_ready(
                    "The description needs a model replica, and none answers."
                ) from None
            self._document = describe_api(schemas, with_keys=self._with_keys)
        return self._document

    async def page(self) -> str:
        """Return it as HTML."""
        return render_page(await self.document())
