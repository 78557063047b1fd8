"""vLLM's synchronous engine, advanced by a thread: one process fewer than vLLM's asynchronous one.

`AsyncLLM` keeps its engine in a process of its own, which imports vLLM a second time: 16 s of
CPU or more (docs/log.md). On a GPU vLLM keeps the second process here too (`LLMEngine` decides).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class EngineFailedError(RuntimeError):
    """The engine failed while it answered; `__cause__` is what vLLM said."""


class SteppedEngine:
    """One engine; everything that touches it runs in its own thread."""

    def __init__(self, arguments: dict[str, Any]):
        """Begin to start the engine with these arguments of vLLM's `EngineArgs`; see `started`."""
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._engine: Any = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(arguments,), daemon=True)
        self._thread.start()

    async def started(self) -> None:
        """Wait until the model is loaded; raises what kept it from it."""
        await asyncio.wrap_future(self._started)

    @property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer of the model."""
        return self._engine.get_tokenizer()

    @property
    def max_length(self) -> int:
        """Context length, in tokens."""
        return int(self._engine.model_config.max_model_len)

    async def finish(self, request_id: str, prompt: Any, params: Any, *, lora: Any = None) -> Any:
        """Return the last `RequestOutput` of a request; raises what vLLM says of a wrong one."""
        done: Future[Any] = Future()

        def begin() -> None:
            try:
                # vLLM makes the id its own by adding to it; outputs bear the one that was given.
                self._waiting[request_id] = done
                self._engine.add_request(request_id, prompt, params, lora_request=lora)
            except Exception as error:
                del self._waiting[request_id]
                done.set_exception(error)

        self._calls.put(begin)
        return await asyncio.wrap_future(done)

    async def forget_prefixes(self) -> None:
        """Empty the cache of prompts' beginnings."""
        done: Future[None] = Future()

        def forget() -> None:
            try:
                self._engine.reset_prefix_cache()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._calls.put(forget)
        await asyncio.wrap_future(done)

    def stop(self) -> None:
        """End the engine, and its process where it has one."""
        self._calls.put(None)
        self._thread.join()

    def _run(self, arguments: dict[str, Any]) -> None:
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while self._take_calls():
            try:
                outputs = self._engine.step()
            except Exception as error:
                failed = EngineFailedError(str(error))
                failed.__cause__ = error
                self._fail(failed)
                continue
            for output in outputs:
                if output.finished:
                    self._waiting.pop(output.request_id).set_result(output)
        self._engine.engine_core.shutdown()
        self._fail(EngineFailedError("it was stopped"))

    def _take_calls(self) -> bool:
        """Run what was asked for, waiting while there is nothing to do; False when it is to end."""
        with suppress(queue.Empty):
            while True:
                call = self._calls.get(block=not self._engine.has_unfinished_requests())
                if call is None:
                    return False
                call()
        return True

    def _fail(self, error: Exception) -> None:
        for done in self._waiting.values():
            done.set_exception(error)
        unfinished = list(self._waiting)
        self._waiting.clear()
        with suppress(Exception):  # a dead engine has nothing left to abort
            self._engine.abort_request(unfinished)
