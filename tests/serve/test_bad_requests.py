"""Bodies that are JSON and still no request: too deep, too long, too many, unknown fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import ApiError
from serve.fields import accepted, check_fields
from serve.requests import ApiRequest, check_size, parse_body

KNOWN = {"model", "messages", "top_k", "kv_transfer_params", "request_id"}


def parsed(**fields: Any) -> ApiRequest:
    return parse_body(json.dumps({"model": "m", **fields}).encode(), max_bytes=10_000_000)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_size(parsed(**fields), max_prompt_chars=1000, max_choices=16)
    return caught.value


def test_nesting_ends_where_processes_could_not_pass_it_on() -> None:
    def nested(levels: int) -> bytes:
        return b'{"model": "m", "tools": ' + b"[" * levels + b"]" * levels + b"}"

    parse_body(nested(60), max_bytes=10_000)
    for levels in (70, 900, 4000):
        with pytest.raises(ApiError, match="nested too deeply"):
            parse_body(nested(levels), max_bytes=10_000)
    flat = {"model": "m", "prompt": [[1]] * 500, "x": "{[" * 500}
    parse_body(json.dumps(flat).encode(), max_bytes=100_000)


def test_a_number_of_many_digits_is_no_number() -> None:
    body = b'{"model": "m", "seed": ' + b"9" * 5000 + b"}"
    with pytest.raises(ApiError, match="too many digits"):
        parse_body(body, max_bytes=10_000)


def test_a_prompt_is_counted_wherever_its_characters_are() -> None:
    message = {"role": "user", "content": "x" * 600}
    parts = {"role": "user", "content": [{"type": "text", "text": "x" * 600}]}
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 600}}
    for fields in (
        {"messages": [message, message]},
        {"messages": [message, parts]},
        {"messages": [message], "tools": [tool]},
        {"prompt": "x" * 1001},
        {"prompt": ["x" * 501, "x" * 501]},
        {"prompt": [7] * 300},
    ):
        error = refusal(**fields)
        assert (error.status, error.code) == (400, "string_above_max_length")
        assert "1000" in error.message
    check_size(parsed(messages=[message]), max_prompt_chars=1000, max_choices=16)


def test_answers_are_counted_over_all_prompts() -> None:
    assert parsed(prompt=["a", "b"], n=3).choices == 6
    assert parsed(prompt=[1, 2, 3], n=2).choices == 2
    assert parsed(messages=[], n=None).choices == 1
    assert parsed(messages=[], n=True).choices == 1
    assert refusal(messages=[], n=1_000_000).param == "n"
    assert refusal(prompt=["a"] * 9, n=2).code == "integer_above_max_value"


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {"a": [1, {"b": 2**70}]}])
def test_an_integer_that_the_engine_cannot_pass_on_names_its_field(value: Any) -> None:
    error = refusal(messages=[], stream_interval=value)
    assert (error.status, error.param) == (400, "stream_interval")
    check_size(parsed(messages=[], seed=2**64 - 1), max_prompt_chars=1000, max_choices=16)


def test_unknown_fields_are_refused_in_openai_s_words() -> None:
    with pytest.raises(ApiError) as caught:
        check_fields({"model": "m", "top_k": 1, "max_token": 5}, KNOWN)
    assert caught.value.body["error"] == {
        "message": "Unrecognized request argument supplied: max_token",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    with pytest.raises(ApiError, match="arguments supplied: a, b"):
        check_fields({"a": 1, "b": None}, KNOWN)


def test_openai_s_fields_that_change_nothing_pass_and_others_only_as_nothing() -> None:
    check_fields({"store": True, "metadata": {}, "best_of": 1, "modalities": ["text"]}, KNOWN)
    for wrong in ({"best_of": 5}, {"modalities": ["audio"]}, {"kv_transfer_params": {}}):
        with pytest.raises(ApiError, match="Unrecognized"):
            check_fields(wrong, KNOWN)
    assert "request_id" not in accepted(KNOWN)
    assert "kv_transfer_params" not in accepted(KNOWN)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
fields = st.sampled_from(["messages", "prompt", "n", "max_tokens", "stream", "tools", "x\x00"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(fields, json_values, max_size=5))
def test_no_json_is_more_than_a_wrong_request(payload: dict[str, Any]) -> None:
    refused: ApiError | None = None
    try:
        request = parse_body(json.dumps({"model": "m", **payload}).encode(), max_bytes=100_000)
        check_size(request, max_prompt_chars=50, max_choices=4)
        check_fields(request.payload, KNOWN)
    except ApiError as error:
        refused = error
    assert refused is None or (refused.status == 400 and json.dumps(refused.body))
