"""Answer the held-out prompts with the base model and with the student's adapter, on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import lora_rank
from cluster.errors import DataError, StageError
from distill.config import EvaluateConfig
from distill.evaluate.engine import EnginePlan, EngineWorker

Progress = Callable[[str, int, int], None]
"""Called with phase (`engine`, `base`, `student`), answers there, answers of both models."""

POLL_S = 1.0
STOP_TIMEOUT_S = 20.0


def predict(
    *,
    model: str,
    adapter: str | Path | None,
    rank: int,
    prompts: Sequence[dict[str, Any]],
    config: EvaluateConfig,
    accelerator: str | None,
    max_model_len: int,
    on_progress: Progress | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return `{"base": rows, "student": rows}`, each in the order of `prompts`.

    One engine answers all prompts with the base model first and then with the adapter (a PEFT
    folder that the worker's node can read; `None`: base only), greedily, `config.concurrency` in
    flight. The keys of a row are those of `EngineWorker.answer`. Needs a connected Ray; takes one
    logical CPU, or one GPU of type `accelerator`.
    """
    import ray

    if not prompts:
        raise DataError("there are no held-out prompts to evaluate on: set prompts.test above 0.")
    if adapter is not None:
        _check_adapter(Path(adapter), rank)
    report = on_progress or (lambda phase, done, total: None)
    plan = EnginePlan(
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        max_model_len=max_model_len,
        rank=rank if adapter is not None else 0,
        concurrency=min(config.concurrency, len(prompts)),
        on_cpu=accelerator is None,
        kv_cache_gb=config.kv_cache_gb,
        extra=dict(config.engine),
    )
    needs: dict[str, Any] = (
        {"num_cpus": 1}
        if accelerator is None
        else {"num_cpus": 1, "num_gpus": 1, "accelerator_type": accelerator}
    )
    worker = (
        ray.remote(EngineWorker)
        .options(runtime_env={"env_vars": plan.environment()}, **needs)
        .remote(plan)
    )
    adapters: dict[str, str | None] = {"base": None}
    if adapter is not None:
        adapters["student"] = str(Path(adapter).absolute())
    sent = [{"example_id": row["example_id"], "messages": row["messages"]} for row in prompts]
    answers: dict[str, list[dict[str, Any]]] = {}
    try:
        asked = len(adapters) * len(prompts)
        report("engine", 0, asked)
        _get(worker.start.remote())
        for number, (name, path) in enumerate(adapters.items()):
            before = number * len(prompts)
            rows = worker.answer.remote(sent, adapter=path, max_tokens=config.max_tokens)
            while not ray.wait([rows], timeout=POLL_S)[0]:
                report(name, before + _get(worker.progress.remote()), asked)
            answers[name] = _get(rows)
            report(name, before + len(prompts), asked)
    finally:
        # Killing the actor alone would leave the engine's child process behind.
        ray.wait([worker.stop.remote()], timeout=STOP_TIMEOUT_S)
        ray.kill(worker)
    return answers


def _check_adapter(folder: Path, rank: int) -> None:
    # Said before an engine has been started for half a minute.
    if rank > lora_rank.LARGEST:
        raise DataError(f"student.rank {rank} is above {lora_rank.LARGEST}, the most vLLM loads.")
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise DataError(f"{folder} is no PEFT adapter: it has no adapter_config.json. Train first.")
    found = int(json.loads(config.read_text(encoding="utf-8"))["r"])
    if found > rank:
        raise DataError(
            f"the adapter in {folder} has rank {found}, the run's student.rank is {rank}: "
            "it was trained with another configuration. Set student.rank to match or train again."
        )


def _get(reference: Any) -> Any:
    """`ray.get` that raises what the worker raised, without Ray's traceback around it."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise StageError(
            "the process that runs vLLM ended without a word; most often the machine ran out of "
            f"memory: free some, or lower evaluate.kv_cache_gb and evaluate.concurrency. ({error})"
        ) from None
