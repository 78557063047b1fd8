"""The process that holds one vLLM engine and answers prompts with the base or with an adapter.

Only a Ray worker makes an `EngineWorker`; vLLM and transformers are imported inside it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import cpu_engine
from cluster.errors import StageError
from cluster.lora_rank import engine_rank
from distill.evaluate.stepped import EngineFailedError, SteppedEngine

LOG_TAIL_BYTES = 64 * 1024
WARM_UP_PROMPTS = 2
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class EnginePlan:
    """Everything a worker needs to start its engine; plain values, so that it can be shipped."""

    model: str
    """Local folder or hub name."""
    max_model_len: int
    """Context length in tokens, prompt plus completion."""
    rank: int
    """Rank of the adapter that will be loaded; 0 starts an engine without adapters."""
    concurrency: int
    """Requests in flight at once, and the engine's `max_num_seqs`."""
    on_cpu: bool
    """Whether the engine runs on CPU cores."""
    kv_cache_gb: int
    """KV cache in GiB, on CPU only; a GPU takes what is free."""
    extra: dict[str, Any]
    """Further vLLM engine arguments; they win."""

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of vLLM's `AsyncEngineArgs`."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.concurrency,
            "dtype": "bfloat16",
            "seed": 0,
            "disable_log_stats": True,
        }
        if self.rank:
            arguments |= {
                "enable_lora": True,
                # One slot more than the one adapter: with every slot filled, vLLM's CPU kernels
                # can answer a base request with the adapter in the last slot.
                "max_loras": 2,
                "max_lora_rank": engine_rank(self.rank),
            }
        if self.on_cpu:
            arguments |= cpu_engine.engine_arguments(kv_cache_gb=self.kv_cache_gb)
        return arguments | self.extra

    def environment(self) -> dict[str, str]:
        """Environment variables that the worker process needs before vLLM is imported."""
        variables = engine_environment(self.model, on_cpu=self.on_cpu, kv_cache_gb=self.kv_cache_gb)
        # On CPU the engine is in the process that asks it.
        return variables | ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if self.on_cpu else {})


def engine_environment(model: str, *, on_cpu: bool, kv_cache_gb: int) -> dict[str, str]:
    """Environment of a process that holds an engine, set before vLLM is imported."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu:
        variables |= cpu_engine.environment(kv_cache_gb=kv_cache_gb)
    if Path(model).is_dir():
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return variables


class EngineWorker:
    """One vLLM engine; an async actor, so that `progress` answers while prompts are running."""

    def __init__(self, plan: EnginePlan):
        self.plan = plan
        self.done = 0

    async def start(self) -> None:
        """Load the model; StageError with the engine's last words when it cannot start."""
        self.engine = SteppedEngine(self.plan.arguments())
        try:
            await self.engine.started()
        except Exception as error:
            raise StageError(
                f"vLLM could not start with {self.plan.model}: {_last_words() or error}"
            ) from None
        self.tokenizer = self.engine.tokenizer

    def progress(self) -> int:
        """Prompts answered since `answer` was called last."""
        return self.done

    async def answer(
        self,
        prompts: Sequence[dict[str, Any]],
        *,
        adapter: str | None,
        max_tokens: int,
    ) -> list[dict[str, Any]]:
        """Answer every prompt greedily, in order, `concurrency` of them in flight.

        Each row has `example_id`, `completion`, `prompt_tokens`, `completion_tokens`, `latency_s`
        (from handing the prompt to the engine to its last token), `started_s` (since the first
        prompt was handed over) and `error` (a prompt the engine refused).
        """
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        from distill.train.encode import encode_prompt

        self.done = 0
        lora = LoRARequest("student", 1, adapter) if adapter else None
        prompts_ids = [encode_prompt(self.tokenizer, row["messages"]) for row in prompts]
        kind = RequestOutputKind.FINAL_ONLY
        # The first batch of each kind pays for kernels and, with an adapter, for loading it.
        warm = SamplingParams(
            temperature=0.0, max_tokens=WARM_UP_TOKENS, ignore_eos=True, output_kind=kind
        )
        fitting = [ids for ids in prompts_ids if len(ids) + WARM_UP_TOKENS <= self.max_length]
        await asyncio.gather(*(self._one(ids, warm, lora) for ids in fitting[:WARM_UP_PROMPTS]))
        # Otherwise the timed prompts would find their own prefill done.
        await self.engine.forget_prefixes()

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, output_kind=kind)
        queue = deque(enumerate(prompts_ids))
        rows: list[dict[str, Any]] = [{} for _ in prompts]
        began = time.perf_counter()

        async def client() -> None:
            while queue:
                index, ids = queue.popleft()
                started = time.perf_counter()
                answer = await self._one(ids, params, lora)
                rows[index] = {
                    "example_id": prompts[index]["example_id"],
                    "prompt_tokens": len(ids),
                    "latency_s": time.perf_counter() - started,
                    "started_s": started - began,
                    **answer,
                }
                self.done += 1

        await asyncio.gather(*(client() for _ in range(self.plan.concurrency)))
        return rows

    @property
    def max_length(self) -> int:
        """Context length the engine ended up with, in tokens."""
        return self.engine.max_length

    async def _one(self, ids: list[int], params: Any, lora: Any) -> dict[str, Any]:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMClientError

        self.counter = getattr(self, "counter", 0) + 1
        answer: dict[str, Any] = {"completion": "", "completion_tokens": 0, "error": ""}
        try:
            output = await self.engine.finish(
                str(self.counter), TokensPrompt(prompt_token_ids=ids), params, lora=lora
            )
            answer["completion"] = output.outputs[0].text
            answer["completion_tokens"] = len(output.outputs[0].token_ids)
        except (VLLMClientError, ValueError) as error:
            answer["error"] = str(error)
        except EngineFailedError as error:
            raise StageError(
                f"vLLM died while answering: {_last_words() or error.__cause__ or error}"
            ) from None
        return answer

    def stop(self) -> None:
        """End the engine."""
        if hasattr(self, "engine"):
            self.engine.stop()


def _last_words() -> str:
    """Last line of this process's log that names an error: the engine's child writes there too."""
    for descriptor in (2, 1):
        try:
            with open(os.readlink(f"/proc/self/fd/{descriptor}"), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            found = re.search(r"\b((?:\w+\.)*\w*(?:Error|Exception): .+)", line)
            # That one only says that the cause is further up.
            if found and "Engine core initialization failed" not in line:
                return found[1]
    return ""
