"""vLLM's models of requests: whatever the types of the fields are, the answer is words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import ApiError
from serve.schemas import FIELDS, REQUESTS, api_schemas, validated

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Bank: ACME USD 12.50; ERP: none"}]
VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 10**18, 1e308, "", "x", [], {}, [[]], [None], {"": 1},
    [{"role": "user"}], [{"role": 3, "content": []}], {"type": "json_schema"}, {"type": 3},
]  # fmt: skip


def request(route: str) -> dict[str, Any]:
    return {"model": "m"} | ({"messages": MESSAGES} if route == "chat" else {"prompt": "x"})


def status(route: str, **fields: Any) -> int:
    refused: ApiError | None = None
    try:
        validated(route, request(route) | fields)
    except ApiError as error:
        refused = error
    return refused.status if refused else 200


@pytest.mark.parametrize("route", sorted(REQUESTS))
def test_every_field_with_every_wrong_type_is_a_wrong_request(route: str) -> None:
    wrong = {
        (name, str(value)): got
        for name in sorted(FIELDS[route])
        for value in VALUES
        if (got := status(route, **{name: value})) not in (200, 400)
    }
    assert wrong == {}


@pytest.mark.parametrize("route", sorted(REQUESTS))
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_no_mixture_of_them_is_more(route: str, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(FIELDS[route]))
    mixed = data.draw(st.dictionaries(names, st.sampled_from(VALUES), max_size=6))
    assert status(route, **mixed) in (200, 400)


def test_a_wrong_type_that_vllm_trips_over_is_said_in_words() -> None:
    with pytest.raises(ApiError, match="wrong type"):
        validated("chat", request("chat") | {"structured_outputs": "x"})
    with pytest.raises(ApiError, match="temperature"):
        validated("chat", request("chat") | {"temperature": "hot"})


def test_the_schemas_name_what_is_accepted() -> None:
    chat = api_schemas()["chat_request"]
    assert chat["required"] == ["messages", "model"]
    assert {"top_k", "structured_outputs", "store"} <= chat["properties"].keys()
    assert not {"kv_transfer_params", "request_id"} & chat["properties"].keys()
    assert chat["additionalProperties"] is False
