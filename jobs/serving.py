"""`distillery serve` and `distillery ask`."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from cluster.errors import DistilleryError, PrerequisiteError
from cluster.models import require_chat_template
from cluster.session import require_port
from jobs.client import api_client
from jobs.config import RunConfig
from jobs.deploy import model_name, start
from jobs.display import Display
from jobs.entry import connected, opened_run
from jobs.routing import routing_parts
from jobs.run import Run
from serve.keys import KeyFile


def serve_forever(config: RunConfig) -> None:
    """Deploy and stay until Ctrl-C; aliases that move in the registry are followed."""
    require_chat_template(config.student.model, field="student.model")
    require_port(config.serve.port, field="serve.port", host=config.serve.host)
    routing_parts(config)
    with opened_run(config) as run:
        run.display.say(f"starting, engine logs in {run.shown('logs')}")
        with connected(run), run.display.step("serve") as progress:
            progress.update(0, 1, "starting the engine and warming it up")
            begin = time.monotonic()
            url = start(run)
            run.display.say(f"ready after {time.monotonic() - begin:.0f} s at {url}/v1")
            run.display.say(f"metrics at http://127.0.0.1:{config.cluster.metrics_port}/metrics")
            if config.serve.keys and not KeyFile(config.serve.keys).exists():
                keys = config.serve.keys
                run.display.say(f"nobody has a key yet: distillery keys create NAME --keys {keys}")
            run.display.say("Ctrl-C stops it")
            threading.Event().wait()


def ask_once(config: RunConfig, *, text: str | None, model: str | None) -> None:
    """Ask the server on `serve.host`:`serve.port`; print the answer and who gave it."""
    from openai import APIConnectionError, APIStatusError

    from serve.app import base_url

    run = Run(config, Display())
    url = base_url(config.serve)
    expected = ""
    if text is None:
        row = _held_out(run)
        messages, expected = row["messages"], row["completion"]
    else:
        system = run.task.spec.prompt.system.strip()
        opening = [{"role": "system", "content": system}] if system else []
        messages = [*opening, {"role": "user", "content": text}]
    begin = time.perf_counter()
    try:
        with api_client(config.serve, url, purpose="ask") as client:
            raw = client.chat.completions.with_raw_response.create(
                model=model or model_name(run),
                messages=messages,
                temperature=0.0,
                max_tokens=config.evaluate.max_tokens,
            )
    except APIConnectionError:
        raise PrerequisiteError(
            f"nothing answers at {url}: start it with `distillery serve FILE`."
        ) from None
    except APIStatusError as error:
        raise DistilleryError(f"{url} answered {error.status_code}: {error.message}") from None
    seconds = time.perf_counter() - begin
    run.display.say(messages[-1]["content"])
    answer = raw.parse().choices[0].message.content
    run.display.say(f"\n{raw.headers.get('x-distillery-model')} ({seconds:.2f} s): {answer}")
    if expected:
        run.display.say(f"expected: {expected}")


def _held_out(run: Run) -> dict[str, Any]:
    from distill.teach.files import read_completions

    prompts = run.rows("prompts/test.parquet", stage="generate")
    answers = read_completions(prompts, run.config.teacher, store=run.store)
    return random.choice(answers)
