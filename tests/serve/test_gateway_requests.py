"""What comes from clients: bodies, request ids, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.example import example_id
from serve.call import Call
from serve.engine_errors import explain_engine_error, raising
from serve.errors import (
    ApiError,
    bad_request,
    internal,
    overloaded,
    refused_model,
    timed_out,
    unknown_model,
)
from serve.replicas import Replicas
from serve.requests import parse_body, prompt_messages, request_id_of
from serve.routes import Routed, Target

LIMIT = 10_000


def test_a_chat_request_is_read() -> None:
    body = {"model": "reconcile", "stream": True, "messages": [], "request_id": "mine", "n": 2}
    request = parse_body(json.dumps(body).encode(), max_bytes=LIMIT)
    assert (request.model, request.stream) == ("reconcile", True)
    # Everything else is the engine's to validate; ids are the gateway's.
    assert request.payload == {"model": "reconcile", "stream": True, "messages": [], "n": 2}


def test_null_stream_means_no_stream() -> None:
    assert not parse_body(b'{"model": "m", "stream": null}', max_bytes=LIMIT).stream


@pytest.mark.parametrize(
    ("prompt", "read"),
    [(["Hello"], "Hello"), ("Hello", "Hello"), (["a", "b"], ["a", "b"]), ([7], [7]), ([], [])],
)
def test_a_list_of_one_text_is_that_text(prompt: object, read: object) -> None:
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    assert parse_body(body, max_bytes=LIMIT).payload["prompt"] == read


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        (b"{oops", 400, None, "not valid JSON"),
        (b"", 400, None, "not valid JSON"),
        (b"[1]", 400, None, "JSON object"),
        (b"\xff{}", 400, None, "UTF-8"),
        (b'{"model": "\\ud800"}', 400, None, "surrogate"),
        (b'{"model": "m", "temperature": NaN}', 400, None, "NaN"),
        (b"[" * 5000 + b"]" * 5000, 400, None, "nested"),
        (b"{}", 400, "model", "required"),
        (b'{"model": 3}', 400, "model", "string"),
        (b'{"model": "m", "stream": "yes"}', 400, "stream", "true or false"),
        (b'"' + b"x" * LIMIT + b'"', 413, None, "at most 10000"),
    ],
)
def test_a_body_that_cannot_be_used_says_why(
    body: bytes, status: int, param: str | None, text: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(body, max_bytes=LIMIT)
    assert (caught.value.status, caught.value.param) == (status, param)
    assert text in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(body: bytes) -> None:
    status = 200
    try:
        parse_body(body, max_bytes=LIMIT)
    except ApiError as error:
        status = error.status
    assert status in (200, 400)


def test_a_request_id_is_kept_if_plain() -> None:
    assert request_id_of("order-17.a:b") == "order-17.a:b"
    assert len(request_id_of(None)) == 32
    assert request_id_of("x" * 500) == "x" * 128
    assert request_id_of("a b%\u00e9/c") == "abc"
    assert len(request_id_of("///")) == 32


def test_errors_have_openai_s_shape() -> None:
    body = unknown_model("nope").body
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "model_not_found"
    assert overloaded().headers["Retry-After"] == "1"
    assert timed_out(120.0).status == 504
    # A replica's error crosses to the gateway as its fields.
    again = ApiError(**refused_model("reconcile@v3", reason="rank").as_dict())
    assert again.body == refused_model("reconcile@v3", reason="rank").body


def test_a_replica_s_refusal_is_remembered_by_its_bare_reason() -> None:
    class Handle:
        def options(self, **options: Any) -> Handle:
            return self

        async def remote(self, *arguments: Any) -> Any:
            return 404, refused_model("reconcile@v3", reason="rank 64 is above 16").as_dict(), None

    async def run() -> dict[str, str]:
        told: dict[str, str] = {}
        asked = Replicas(answer=Handle(), stream=Handle(), timeout_s=5, on_refused=told.__setitem__)
        call = Call("chat", "r1")
        call.send_to(Routed(Target("reconcile@v3", "reconcile@v3", "reconcile", "v3")))
        with pytest.raises(ApiError, match="is published but this server refuses it: rank 64"):
            await asked.answer(call, {}, logprobs=False)
        return told

    assert asyncio.run(run()) == {"reconcile@v3": "rank 64 is above 16"}


def test_a_long_model_name_is_not_echoed_whole() -> None:
    assert len(unknown_model("x" * 100_000).message) < 300


def test_an_over_long_prompt_is_told_both_lengths() -> None:
    said = (
        "This model's maximum context length is 2048 tokens. However, you requested 16 output "
        "tokens and your prompt contains at least 2049 input tokens"
    )
    error = explain_engine_error(said, param="input_tokens", max_length=2048, length=lambda: 9001)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert "2048" in error.message
    assert "9001" in error.message


@pytest.mark.parametrize(
    ("code", "before", "status", "message"),
    [
        (400, 0, 400, "logit_bias has token 99999999"),
        (500, 0, 500, "request id r1"),
        # Somebody reads the answer already: it can no longer be the request that is wrong.
        (400, 2, 500, "request id r1"),
    ],
)
def test_an_event_that_is_an_error_is_raised_as_one(
    code: int, before: int, status: int, message: str
) -> None:
    said = {"message": "logit_bias has token 99999999", "type": "t", "param": None, "code": code}

    async def events() -> AsyncGenerator[str, None]:
        for _ in range(before):
            yield 'data: {"id": "chatcmpl-1"}\n\n'
        yield f"data: {json.dumps({'error': said})}\n\n"
        yield "data: [DONE]\n\n"

    def explain(code: int, text: str, param: str | None) -> ApiError:
        return internal("r1") if code >= 500 else bad_request(text, param=param)

    async def read(seen: list[str]) -> None:
        async for event in raising(events(), explain):
            seen.append(event)

    seen: list[str] = []
    with pytest.raises(ApiError, match=message) as caught:
        asyncio.run(read(seen))
    assert (caught.value.status, len(seen)) == (status, before)


def test_the_example_id_is_the_one_of_the_training_record() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    parts = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]
    assert example_id(prompt_messages({"messages": parts})) == example_id(messages)
    assert prompt_messages({"prompt": "Hello"}) == [{"role": "user", "content": "Hello"}]
