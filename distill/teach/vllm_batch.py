"""A model that the cluster runs itself: vLLM in batches, through `ray.data.llm`.

Each batch's answers are in the journal before the batch counts, as those of an API are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import cpu_engine
from cluster.errors import StageError, root_cause
from cluster.models import model_location
from distill.batches import Progress, drain, failed_block
from distill.evaluate.engine import engine_environment
from distill.tasks.task import Task
from distill.teach.answer import Answer, journal_row, problem_of
from distill.teach.config import Price, VLLMTeacher
from distill.teach.identity import teacher_name
from distill.teach.journal import Journal
from distill.teach.reasoning import split_reasoning, with_reasoning

KV_CACHE_GB = 1
"""Of an engine on CPU cores; `[teacher.engine] kv_cache_memory_bytes` overrides it."""
FREE = Price(input_usd_per_mtok=0, output_usd_per_mtok=0)
RESTARTS = 3
"""Of an engine, before the stage gives up."""

Row = dict[str, Any]


def ask_vllm(
    rows: Sequence[Row],
    task: Task,
    config: VLLMTeacher,
    *,
    cache: Path,
    payer: str,
    on_progress: Progress | None = None,
) -> None:
    """Answer `rows` (as of `distill.teach.ask.ask`) with engines on the cluster.

    A prompt that an engine refuses, one that is too long say, becomes a failed row.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    on_cpu = not ray.cluster_resources().get("GPU")
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model_location(config.model),
            engine_kwargs=_engine_arguments(config, on_cpu=on_cpu),
            runtime_env={
                "env_vars": engine_environment(config.model, on_cpu=on_cpu, kv_cache_gb=KV_CACHE_GB)
            },
            placement_group_config={"bundles": [{"CPU": 1}]} if on_cpu else None,
            concurrency=(config.replicas, config.replicas),
            batch_size=config.batch_size,
            should_continue_on_error=True,
            log_engine_metrics=False,
        ),
        preprocess=_request(task, config),
        postprocess=lambda row: {
            "row": row["row"],
            "text": row.get("generated_text") or "",
            "error": row.get("__inference_error__") or "",
            "prompt_tokens": int(row.get("num_input_tokens") or 0),
            "completion_tokens": int(row.get("num_generated_tokens") or 0),
            "latency_s": float(row.get("time_taken_llm") or 0.0),
        },
    )
    # An engine that dies takes its actor with it, and Ray Data would start another without end.
    for stage in processor.stages.values():
        stage.map_batches_kwargs.update(max_restarts=RESTARTS, max_task_retries=RESTARTS)
    blocks = max(config.replicas, -(-len(rows) // config.batch_size))
    asked = ray.data.from_items(
        [{"row": json.dumps(row)} for row in rows], override_num_blocks=blocks
    )
    written = processor(asked).map_batches(
        _JournalWriter,
        fn_constructor_args=(config, teacher_name(config, task), str(cache), payer),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,
    )
    try:
        drain(written, total=len(rows), on_progress=on_progress)
    except ray.exceptions.RayError as error:
        if not isinstance(root_cause(error), ray.exceptions.ActorDiedError):
            raise
        raise StageError(
            f"vLLM's engine with {config.model} ended {RESTARTS + 1} times; its own words are in "
            "the run's logs/ray. What was answered is kept; a rerun asks for the rest."
        ) from error


class _JournalWriter:
    """A Ray Data actor: writes a batch's answers down; only counts go on to the driver."""

    def __init__(self, config: VLLMTeacher, name: str, cache: str, payer: str):
        self._config = config
        self._name, self._payer = name, payer
        self._journal = Journal(cache)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = zip(*batch.values(), strict=True)
        rows = [dict(zip(batch, values, strict=True)) for values in columns]
        try:
            for found in rows:
                answer = self._answer(found)
                row = json.loads(found["row"])
                self._journal.add(journal_row(row, answer, teacher=self._name, payer=self._payer))
        except Exception:
            return failed_block()
        return {"done": [len(rows)], "error": [b""]}

    def _answer(self, found: Row) -> Answer:
        if found["error"]:
            return Answer(error=str(found["error"])[:500], failure="refused")
        rationale, text = "", str(found["text"]).strip()
        if self._config.reasoning:
            rationale, text = split_reasoning(text)
        tokens_in, tokens_out = int(found["prompt_tokens"]), int(found["completion_tokens"])
        # A batch has no finish reason.
        truncated = tokens_out >= self._config.max_tokens
        error, failure = problem_of(text, truncated=truncated, max_tokens=self._config.max_tokens)
        # Without a price: the cluster's own hours are not billed by the token.
        price = (self._config.price or FREE).as_token_price("[teacher.price]")
        return Answer(
            completion=text,
            rationale=rationale,
            error=error,
            failure=failure,
            prompt_tokens=tokens_in,
            completion_tokens=tokens_out,
            latency_s=float(found["latency_s"]),
            cost_usd=price.request_usd(prompt_tokens=tokens_in, completion_tokens=tokens_out),
        )


def _request(task: Task, config: VLLMTeacher) -> Callable[[Row], Row]:
    """Return the function that makes a row `ray.data.llm`'s request."""
    schema = ""
    if config.structured and not config.reasoning and task.spec.output.format == "json":
        # As text: a column of nested objects would get every key of every row, filled with nulls.
        schema = json.dumps(task.schema)

    def request(batch_row: Row) -> Row:
        row = json.loads(batch_row["row"])
        sampling: Row = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        if config.seed is not None:
            sampling["seed"] = config.seed + (row.get("sample") or 0)
        if schema:
            sampling["structured_outputs"] = {"json": schema}
        messages = with_reasoning(row["messages"]) if config.reasoning else row["messages"]
        return {"row": batch_row["row"], "messages": messages, "sampling_params": sampling}

    return request


def _engine_arguments(config: VLLMTeacher, *, on_cpu: bool) -> Row:
    arguments: Row = {"dtype": "bfloat16", "seed": 0}
    if on_cpu:
        arguments |= cpu_engine.engine_arguments(kv_cache_gb=KV_CACHE_GB)
    return arguments | config.engine
