"""One chat completion of any provider or OpenAI-compatible server, through LiteLLM.

Here LiteLLM is set up; whoever needs it takes it from this module.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

# The price table that was installed, not today's from the network: the same run, the same bill.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# LiteLLM's own client for OpenAI's protocol: 2.5 of 10 ms of CPU a call less than through the
# `openai` package. It sends no organization, so who names one keeps the package.
if not os.environ.get("OPENAI_ORGANIZATION"):
    os.environ.setdefault("EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER", "True")
import litellm

from cluster.errors import PrerequisiteError
from distill.teach.limits import Gate, Slot

# Why a request failed, for those that another attempt can mend. A bad request, a wrong key or a
# refused content cannot be.
WORTH_RETRYING: tuple[tuple[type[Exception], str], ...] = (
    (litellm.exceptions.RateLimitError, "rate_limit"),
    (litellm.exceptions.Timeout, "timeout"),
    (TimeoutError, "timeout"),
    (litellm.exceptions.APIConnectionError, "connection"),
    (litellm.exceptions.ServiceUnavailableError, "server"),
    (litellm.exceptions.BadGatewayError, "server"),
    (litellm.exceptions.InternalServerError, "server"),
    (litellm.exceptions.APIResponseValidationError, "malformed"),
)
LONGEST_WAIT_S = 60.0
GRACE_S = 5.0
"""What a request may take beyond its time-out before it is given up from outside: a server that
sends a byte now and then keeps the client's own time-out from ever passing."""


class MalformedResponse(Exception):
    """The server answered 200 with something that is no completion."""


def reason_to_retry(error: BaseException) -> str:
    """Return why another attempt may succeed, or "" when it cannot."""
    if isinstance(error, MalformedResponse):
        return "malformed"
    for kind, reason in WORTH_RETRYING:
        if isinstance(error, kind):
            return reason
    # LiteLLM wraps a body that is no JSON in its plain APIError.
    return "malformed" if type(error) is litellm.exceptions.APIError else ""


def retry_after_s(error: BaseException) -> float:
    """Seconds that the provider asked to wait, 0 when it did not say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:  # an HTTP date
        return 1.0


def connection(*, model: str, api_base: str | None, api_key_env: str | None) -> dict[str, Any]:
    """Arguments that reach the model; a key that is needed and missing is a PrerequisiteError."""
    if api_key_env:
        key = os.environ.get(api_key_env)
        if not key:
            raise PrerequisiteError(
                f"the key for {model} is missing: set the environment variable {api_key_env}."
            )
        return {"model": model, "api_base": api_base, "api_key": key}
    missing = litellm.validate_environment(model)["missing_keys"]
    if missing and api_base:
        # A server of one's own usually asks for no key, but the client insists on some text.
        return {"model": model, "api_base": api_base, "api_key": "none"}
    if missing:
        raise PrerequisiteError(
            f"the key for {model} is missing: set the environment variable {' or '.join(missing)}, "
            "or name another one with api_key_env."
        )
    return {"model": model, "api_base": api_base}


async def complete(
    request: dict[str, Any],
    *,
    max_retries: int,
    timeout_s: float,
    gate: Gate | None = None,
    tokens: int = 0,
    on_retry: Callable[[str], None] | None = None,
) -> tuple[Any, float]:
    """Send one chat completion with retries; returns (response, seconds of the last attempt).

    With a `gate` every attempt waits there for its turn, with an estimate of its `tokens`, and
    tells it what came of it. `on_retry` is called with the reason of each retry.
    """
    backoff = wait_random_exponential(multiplier=0.5, max=30)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = retry_after_s(error) if error else 0.0
        return asked or float(backoff(state))

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_retry is not None and error is not None:
            on_retry(reason_to_retry(error))

    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(max_retries + 1),
        wait=wait,
        retry=retry_if_exception(lambda error: bool(reason_to_retry(error))),
        before_sleep=before_sleep,
        reraise=True,
    ):
        again = attempt.retry_state.attempt_number > 1
        with attempt:
            async with gate.slot(tokens, again=again) if gate else nullcontext() as slot:
                return await _once(request, timeout_s=timeout_s, slot=slot)
    raise AssertionError("AsyncRetrying ends with a result or raises")


async def _once(
    request: dict[str, Any], *, timeout_s: float, slot: Slot | None
) -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            response = await litellm.acompletion(**request, timeout=timeout_s, max_retries=0)
    except Exception as error:
        if slot is not None and isinstance(error, litellm.exceptions.RateLimitError):
            slot.throttled, slot.retry_after_s = True, retry_after_s(error)
        raise
    if not getattr(response, "choices", None):
        raise MalformedResponse("a response without choices")
    if slot is not None and getattr(response, "usage", None):
        slot.tokens = int(response.usage.total_tokens)
    return response, time.perf_counter() - start
