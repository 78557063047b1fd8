"""Serve the registry's adapters on Ray Serve and ask a few held-out prompts through the API.

`python -m jobs.deploy --config …` checks a deployment and takes it down again unless the run
joined a cluster; `distillery serve FILE` keeps it up.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cluster.errors import StageError
from cluster.registry import Registry
from cluster.session import require_memory
from jobs.client import api_client
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.quality import quality_parts
from jobs.routing import routing_parts
from jobs.run import Run, StageResult

if TYPE_CHECKING:
    from openai import OpenAI

QUESTIONS = 16
CLIENTS = 8


def work(run: Run, progress: StepProgress) -> StageResult:
    """Deploy, ask, compare with what evaluation saw; write `deploy.json`."""
    config = run.config
    prompts = run.rows("prompts/test.parquet", stage="generate")[:QUESTIONS]
    progress.update(0, len(prompts) + 1, "starting the engine and warming it up")
    url = start(run)
    try:
        with api_client(config.serve, url, purpose="deploy") as client:
            answers = ask_all(
                client, model_name(run), prompts, config.evaluate.max_tokens, progress
            )
    finally:
        if config.cluster.address == "local":
            from serve.app import shutdown

            shutdown(config.serve.app_name)
    valid = sum(run.task.parse(a["completion"]).answer is not None for a in answers)
    evaluated = _evaluated(run)
    same = sum(evaluated.get(a["example_id"]) == a["completion"].strip() for a in answers)
    latencies = sorted(a["latency_s"] for a in answers)
    run.store.write_json(
        "deploy.json",
        {"url": url, "valid": valid, "same_as_evaluated": same, "answers": answers},
    )
    # bf16 rounds differently in batches of another size, so a few words may differ; all of them
    # differing means that something else is served than what passed the gates.
    if evaluated and not valid and any(run.task.parse(t).answer for t in evaluated.values()):
        raise StageError(
            f"none of {len(answers)} answers from {model_name(run)} fits the output schema, while "
            "the evaluated student's did: another adapter is served. deploy.json has the answers."
        )
    return StageResult(
        rows_in=len(prompts),
        rows_out=len(answers),
        note=(
            f"{answers[0]['served_by']} answered {len(answers)} prompts over HTTP, {valid} valid, "
            f"{same} word for word as evaluated, median {latencies[len(latencies) // 2]:.1f} s"
        ),
    )


def _evaluated(run: Run) -> dict[str, str]:
    """The student's answers that evaluation recorded, by example."""
    if not run.store.exists("predictions"):
        return {}
    rows = run.store.read_rows("predictions")
    return {r["example_id"]: r["completion"].strip() for r in rows if r["model"] == "student"}


def start(run: Run) -> str:
    """Deploy on the connected Ray; returns the base URL once every replica is warm."""
    from serve.app import deploy

    config = run.config
    require_memory(config.cluster.min_free_memory_gb, purpose=f"serving {config.student.model}")
    return deploy(
        config.serve,
        base_model=config.student.model,
        registry_uri=config.registry.uri,
        accelerator=config.cluster.accelerator,
        quality=quality_parts(config),
        routing=routing_parts(config),
    )


def model_name(run: Run) -> str:
    """The alias clients ask for: the plain name for `prod`, else `name@alias`."""
    registry = run.config.registry
    name = registry.name or run.task.name
    target = Registry(registry.uri).aliases(name).get(registry.alias)
    if target is None:
        raise StageError(f"{name}: alias {registry.alias!r} points at no version; publish first.")
    return name if registry.alias == "prod" else f"{name}@{registry.alias}"


def ask_all(
    client: OpenAI,
    model: str,
    prompts: list[dict[str, Any]],
    max_tokens: int,
    progress: StepProgress,
) -> list[dict[str, Any]]:
    """Ask every prompt, `CLIENTS` at a time; answers in the order of the prompts."""

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=row["messages"], temperature=0.0, max_tokens=max_tokens
        )
        return {
            "example_id": row["example_id"],
            "completion": raw.parse().choices[0].message.content or "",
            "latency_s": time.perf_counter() - begin,
            "served_by": raw.headers.get("x-distillery-model", ""),
            "request_id": raw.headers.get("x-request-id", ""),
        }

    answers = []
    with ThreadPoolExecutor(CLIENTS) as clients:
        for answer in clients.map(ask, prompts):
            answers.append(answer)
            progress.update(len(answers), len(prompts), f"asked {len(answers)}/{len(prompts)}")
    return answers


if __name__ == "__main__":
    stage_main("deploy", work)
