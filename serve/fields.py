"""Which top-level fields of a request are known; OpenAI's API refuses others, vLLM ignores them.

An unknown field is a mistake that nobody would see: `max_token`, or an option of another release.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from serve.errors import ApiError, bad_request

WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
"""Fields of OpenAI's API that clients send and that change nothing in an answer of this server."""

ONLY_AS: Mapping[str, list[Any]] = {
    "audio": [None],
    "best_of": [None, 1],
    "function_call": [None, "none"],
    "functions": [None],
    "modalities": [None, ["text"]],
    "web_search_options": [None],
}
"""Fields of OpenAI's API that this server cannot honour, and the values that ask for nothing."""

NOT_FOR_CLIENTS = frozenset({"kv_transfer_params", "ec_transfer_params"})
"""Fields by which vLLM's engines pass work to each other."""


def check_fields(payload: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ApiError (400), in OpenAI's words, for fields beyond `known` and the above."""
    unknown = [
        name
        for name, value in payload.items()
        if (name not in known or name in NOT_FOR_CLIENTS)
        and name not in WITHOUT_EFFECT
        and value not in ONLY_AS.get(name, ())
    ]
    if unknown:
        raise _unrecognized(unknown)


def accepted(known: Collection[str]) -> list[str]:
    """Return every field that is accepted, for the OpenAPI description."""
    return sorted((set(known) | WITHOUT_EFFECT | ONLY_AS.keys()) - NOT_FOR_CLIENTS - {"request_id"})


def _unrecognized(names: list[str]) -> ApiError:
    plural = "s" if len(names) > 1 else ""
    shown = ", ".join(name[:64] for name in names[:8])
    return bad_request(f"Unrecognized request argument{plural} supplied: {shown}")
