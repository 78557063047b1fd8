"""The model that writes prompts, asked as durably as the teacher is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ConfigError
from cluster.storage import Store
from distill.batches import Progress
from distill.config import PromptsConfig
from distill.prompts.config import EvolInstruct, SelfInstruct
from distill.prompts.self_instruct import Ask
from distill.prompts.stage import Prompts, make_prompts
from distill.records import Message, example_id
from distill.tasks.task import Task
from distill.teach.ask import ask, budget_reached, request_keys
from distill.teach.bill import bill, keep_bill
from distill.teach.config import AnyTeacher, LiteLLMTeacher, ModelTeacher
from distill.teach.stage import check_teacher


def writer_of(config: PromptsConfig, teacher: AnyTeacher) -> ModelTeacher | None:
    """The model that `prompts.make` lets write, or nothing where none is needed.

    ConfigError where one is needed and there is none.
    """
    make = config.make
    if not isinstance(make, (SelfInstruct, EvolInstruct)):
        return None
    found = make.writer or teacher
    if not isinstance(found, ModelTeacher):
        raise ConfigError(
            f"prompts.make.kind {make.kind!r} needs a model that writes, and the teacher is "
            f"{found.kind!r}: set [prompts.make.writer] kind, model and what [teacher] would have."
        )
    # What it writes is no answer to the task.
    plain = {"reasoning": False, "samples": 1}
    if isinstance(found, LiteLLMTeacher):
        return found.model_copy(update={**plain, "repair": False, "structured": "off"})
    return found.model_copy(update={**plain, "structured": False})


def check_writer(
    config: PromptsConfig, teacher: AnyTeacher, task: Task, *, here: bool = True
) -> None:
    """Fail now on what would fail later: no model, no key, no price, no permission.

    `here` as for `check_teacher`.
    """
    found = writer_of(config, teacher)
    if found is not None:
        check_teacher(found, task, here=here)


def prompts_and_writer(
    task: Task,
    config: PromptsConfig,
    teacher: AnyTeacher,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> Prompts:
    """Make the prompts, with the model that `prompts.make` wants where it wants one."""
    writer = writer_of(config, teacher)
    return make_prompts(
        task,
        config,
        store=store,
        ask=write_with(writer, task, store=store) if writer else None,
        on_progress=on_progress,
    )


def write_with(config: ModelTeacher, task: Task, *, store: Store) -> Ask:
    """Return the function that asks the writer; what it has said once is not asked again."""
    asked: set[str] = set()

    def answers(conversations: Sequence[list[Message]]) -> list[str]:
        rows = [
            {
                "example_id": example_id(messages),
                "messages": messages,
                "variables": "",
                "sample": 0,
                "stage": "prompts",
            }
            for messages in conversations
        ]
        keys = request_keys(rows, config, task)
        known = ask(
            [{**row, "request_key": key} for row, key in zip(rows, keys, strict=True)],
            config,
            task,
            store=store,
        )
        asked.update(keys)
        payer = Path(store.root).name
        entry = bill(known.of_interest, keys=asked, payer=payer, stage="prompts")
        keep_bill(store, "prompts", entry)
        if known.unasked:
            raise budget_reached(config, known, total=len(rows))
        # A list that was cut off has whole lines before its end.
        said = known.failed | known.answered
        return [said[key]["completion"] if key in said else "" for key in keys]

    return answers
