"""`on_policy`: the student's own answers, sampled through vLLM with the adapter as it is then.

Agarwal et al. 2024, algorithm 1 (GKD). Answers of some optimiser steps are sampled at once and kept
in `<run>/samples`, so that a resumed run trains on the very same ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from distill.evaluate.engine import EnginePlan, EngineWorker
from distill.train.config import StudentConfig, TrainConfig
from distill.train.encode import Encoded, Item
from distill.train.feed import WorkerStep

KV_CACHE_GB = 1
CONCURRENCY = 32


class SamplingWorker(EngineWorker):
    """A vLLM engine that is handed a newer adapter now and then."""

    async def sample(
        self,
        requests: Sequence[tuple[list[int], int, int]],
        *,
        adapter: str,
        version: int,
        temperature: float,
    ) -> list[list[int]]:
        """Return the sampled token ids, in order, of (prompt ids, most tokens, seed) each."""
        from vllm import TokensPrompt
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        # vLLM knows an adapter by its number: another version is another adapter.
        lora = LoRARequest(f"student-{version}", version, adapter)

        async def one(number: int, ids: list[int], most: int, seed: int) -> list[int]:
            params = SamplingParams(
                temperature=temperature,
                max_tokens=most,
                seed=seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = TokensPrompt(prompt_token_ids=ids)
            output = await self.engine.finish(f"{version}-{number}", prompt, params, lora=lora)
            return list(output.outputs[0].token_ids)

        return await asyncio.gather(*(one(i, *request) for i, request in enumerate(requests)))


def start_sampler(config: StudentConfig, *, accelerator: str | None) -> Any:
    """Start the engine in an actor of its own and wait until it is up."""
    import ray

    plan = EnginePlan(
        model=config.model,
        max_model_len=config.max_length,
        rank=config.rank,
        concurrency=CONCURRENCY,
        on_cpu=accelerator is None,
        kv_cache_gb=KV_CACHE_GB,
        extra={},
    )
    actor = (
        ray.remote(SamplingWorker)
        .options(
            # On CPU it works while the trainers wait for it, and the other way round.
            num_cpus=0 if accelerator is None else 1,
            num_gpus=0 if accelerator is None else 1,
            accelerator_type=accelerator,
            runtime_env={"env_vars": plan.environment()},
        )
        .remote(plan)
    )
    ray.get(actor.start.remote())
    return actor


class OnPolicyItems:
    """Training items with their answers replaced by the student's, window by window."""

    def __init__(
        self,
        sampler: Any,
        *,
        student: StudentConfig,
        train: TrainConfig,
        folder: Path,
    ):
        """`sampler` is the actor; `folder` takes `samples/`."""
        self._sampler = sampler
        self._student, self._train = student, train
        self._folder = folder / "samples"

    def window(self, mine: Sequence[WorkerStep], *, first_step: int, save: Any) -> dict[int, Item]:
        """Return a worker's items of a window of steps by number; every worker must call this.

        `save(folder)` writes the current adapter, on all workers together.
        """
        import torch.distributed as dist

        items = {i: item for step in mine for i, item in step.items.items()}
        kept = self._folder / f"step-{first_step:06d}.jsonl"
        there = [kept.is_file()] if dist.get_rank() == 0 else [False]
        dist.broadcast_object_list(there, src=0)
        found: list[Any] = [None]
        if not there[0]:
            adapter = self._folder / f"adapter-{first_step:06d}"
            save(adapter)
            chosen = self._chosen(items, first_step)
            if dist.get_rank() == 0:
                self._write(kept, self._ask(chosen, first_step=first_step, adapter=adapter))
                shutil.rmtree(adapter)  # its answers are there; nobody asks it again
        if dist.get_rank() == 0:
            found = [[json.loads(line) for line in kept.read_text().splitlines()]]
        dist.broadcast_object_list(found, src=0)
        sampled = {row["index"]: row["tokens"] for row in found[0]}
        return {i: _answered(item, sampled.get(i)) for i, item in items.items()}

    def _chosen(self, mine: Mapping[int, Item], first_step: int) -> list[tuple[int, Item]]:
        """Draw who is answered by the student, by number, among all workers' items."""
        import torch.distributed as dist

        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, list(mine.items()))
        settings = self._train.on_policy
        return [
            (i, item)
            for i, item in sorted((pair for part in everyone for pair in part), key=itemgetter(0))
            if self._draw(first_step, i, "chosen").random() < settings.student_fraction
        ]

    def _draw(self, first_step: int, index: int, purpose: str) -> random.Random:
        return random.Random(f"{self._train.seed}/{first_step}/{index}/{purpose}")

    def _ask(
        self, chosen: Sequence[tuple[int, Item]], *, first_step: int, adapter: Path
    ) -> list[Any]:
        import ray

        settings = self._train.on_policy
        requests = []
        for i, item in chosen:
            prompt = _prompt(item)
            most = min(settings.max_tokens, self._student.max_length - len(prompt))
            requests.append((prompt, most, self._draw(first_step, i, "answer").getrandbits(31)))
        tokens = ray.get(
            self._sampler.sample.remote(
                requests,
                adapter=str(adapter),
                version=first_step + 1,
                temperature=settings.sampling_temperature,
            )
        )
        return [
            {"index": i, "example_id": item.example_id, "tokens": found}
            for (i, item), found in zip(chosen, tokens, strict=True)
        ]

    def _write(self, path: Path, rows: list[Any]) -> None:
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        beside.replace(path)


def _prompt(item: Item) -> list[int]:
    sequence = item.sequences[0]
    return sequence.tokens[: sequence.num_prompt]


def _answered(item: Item, sampled: list[int] | None) -> Item:
    if not sampled:
        return item
    prompt = _prompt(item)
    return Item(item.example_id, (Encoded(item.example_id, [*prompt, *sampled], len(prompt)),))
