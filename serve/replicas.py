"""Asks replicas through Serve's handle: on another one if one dies, until the deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.call import Call
from serve.errors import ApiError, internal, not_ready, overloaded, timed_out
from serve.quality.gate import ReplicaAnswer

log = logging.getLogger("ray.serve")

MAX_ATTEMPTS = 4
MOST_HANDLES = 1000
"""Of versions that were asked for; a handle is made anew in a fraction of a millisecond."""
RETRY_PAUSE_S = 0.1
"""Before another replica is asked: the router has to learn that one is gone."""


class Replicas:
    """The model replicas as one request sees them; every failure is an ApiError."""

    def __init__(
        self,
        *,
        answer: Any,
        stream: Any,
        timeout_s: float,
        on_refused: Callable[[str, str], None],
    ):
        """`answer` and `stream` are handles of these methods of the replica.

        `on_refused` is told of an adapter that a replica would not load, and why.
        """
        self._handles: dict[str | None, tuple[Any, Any]] = {None: (answer, stream)}
        self._timeout_s = timeout_s
        self._on_refused = on_refused

    def handles(self, model_id: str | None) -> tuple[Any, Any]:
        """Return the handles of `answer` and `stream` that prefer replicas with this adapter."""
        found = self._handles.get(model_id)
        if found is None:
            if len(self._handles) > MOST_HANDLES:
                self._handles = {None: self._handles[None]}
            answer, stream = self._handles[None]
            found = self._handles[model_id] = (
                answer.options(multiplexed_model_id=model_id),
                stream.options(multiplexed_model_id=model_id),
            )
        return found

    async def answer(self, call: Call, payload: dict[str, Any], *, logprobs: bool) -> ReplicaAnswer:
        """Return a whole answer."""
        assert call.target is not None
        arguments = (call.route, payload, call.target.model_id, call.request_id, logprobs)
        answer, _ = self.handles(call.target.model_id)
        status, content, usage = await self._first_result(call, lambda: answer.remote(*arguments))
        if status != 200:
            raise self._replica_error(call, content)
        return ReplicaAnswer(content, usage)

    async def begin_stream(self, call: Call) -> tuple[Any, Any]:
        """Return a stream's first event and the rest, which whoever gets it cancels or ends."""
        assert call.request is not None
        assert call.target is not None
        asked = (call.route, call.request.payload, call.target.model_id, call.request_id)
        _, stream = self.handles(call.target.model_id)
        events: Any = None

        def start() -> Any:
            nonlocal events
            events = stream.remote(*asked)
            return events.__anext__()

        try:
            first = await self._first_result(call, start)
            if isinstance(first, tuple):
                raise self._replica_error(call, first[1])
        except BaseException:
            if events is not None:
                events.cancel()
            raise
        return first, events

    async def _first_result(self, call: Call, start: Any) -> Any:
        """Await a replica's first result, on another replica if one died before it began."""
        attempt = 0
        while True:
            attempt += 1
            result = start()
            try:
                async with asyncio.timeout(self._timeout_s - call.elapsed_s):
                    return await result
            except RayActorError as error:
                if attempt == MAX_ATTEMPTS:
                    raise self.known_error(error, call) from error
                log.warning("request %s: a replica died, asking another", call.request_id)
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
            except asyncio.CancelledError:
                # The client left: nobody reads what the replica would go on to generate.
                if hasattr(result, "cancel"):
                    result.cancel()
                raise
            except (TimeoutError, BackPressureError, DeploymentUnavailableError) as error:
                if hasattr(result, "cancel"):
                    result.cancel()
                raise self.known_error(error, call) from None
            except (RayTaskError, TaskCancelledError) as error:
                raise self.known_error(error, call) from error

    def known_error(self, error: Exception, call: Call) -> ApiError:
        """What the client is told of an error."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            return timed_out(self._timeout_s)
        if isinstance(error, BackPressureError):
            return overloaded()
        if isinstance(error, (DeploymentUnavailableError, RayActorError)):
            return not_ready("No model replica can answer at the moment.")
        log.error("request %s failed", call.request_id, exc_info=error)
        return internal(call.request_id)

    def _replica_error(self, call: Call, fields: dict[str, Any]) -> ApiError:
        error = ApiError(**fields)
        if error.kind == "refused_adapter" and call.target and call.target.model_id:
            self._on_refused(call.target.model_id, error.reason or error.message)
        return error
