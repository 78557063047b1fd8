"""The API's description and its page, from schemas as a replica gives them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import schemathesis

from serve.openapi import describe_api, render_page

REQUEST = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "n": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 1},
        "stop": {"type": "array", "items": {"type": "string"}, "description": "Up to <four>."},
    },
    "required": ["model"],
}
SCHEMAS = {
    "chat_request": REQUEST,
    "completions_request": REQUEST,
    "chat_answer": {"type": "object"},
    "completions_answer": {"type": "object"},
}


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere_and_tools_can_read_it() -> None:
    document = describe_api(SCHEMAS, with_keys=True)
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    operations = [r.ok() for r in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert {"POST /v1/chat/completions", "GET /v1/models"} <= {o.label for o in operations}


def test_keys_are_described_where_they_are_asked_for() -> None:
    assert describe_api(SCHEMAS, with_keys=True)["security"] == [{"key": []}]
    assert describe_api(SCHEMAS, with_keys=True)["paths"]["/health"]["get"]["security"] == []
    assert "security" not in describe_api(SCHEMAS, with_keys=False)
    assert "DISTILLERY_API_KEY" in render_page(describe_api(SCHEMAS, with_keys=True))
    assert "DISTILLERY_API_KEY" not in render_page(describe_api(SCHEMAS, with_keys=False))


def test_the_page_shows_every_field_and_loads_nothing() -> None:
    page = render_page(describe_api(SCHEMAS, with_keys=False))
    HTMLParser().feed(page)
    assert "Up to &lt;four&gt;." in page
    assert "list of string" in page
    assert "integer | null" in page
    assert not re.search(r"<(script|link|img)|(src|href)=.?(https?:)?//|@import|url\(", page)
