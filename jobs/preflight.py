"""Everything that can be known to fail later, checked before anything is loaded or paid for."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import ConfigError
from cluster.models import require_chat_template
from cluster.session import require_memory, require_port
from distill.formats.convert import open_source
from distill.judge.judges import check_jury
from distill.prompts.stage import check_prompts
from distill.prompts.writer import check_writer
from distill.teach.config import gives_candidates, members_of
from distill.teach.stage import check_teacher
from distill.train.prepare import check_settings
from distill.train.stage import with_absolute_paths
from distill.train.track import check_trackers
from jobs.config import RunConfig
from jobs.routing import routing_parts
from jobs.run import Run


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Raise the first problem that would stop one of `stages`."""
    config = run.config
    local = config.cluster.address == "local"
    check_input(run, stages)
    if "generate" in stages:
        check_prompts(run.task, config.prompts)
    if "train" in stages:
        check_trackers(config.train.track)
        with_absolute_paths(config.train)
    if {"train", "evaluate", "deploy"} & set(stages):
        require_chat_template(config.student.model, field="student.model")
    if {"train", "evaluate", "deploy"} & set(stages) and local:
        require_memory(config.cluster.min_free_memory_gb, purpose="this run")
    if "deploy" in stages:
        routing_parts(config)
    if "deploy" in stages and local:
        require_port(config.serve.port, field="serve.port", host=config.serve.host)


def check_input(run: Run, stages: Sequence[str], *, here: bool = True) -> None:
    """Raise the first problem of the configuration and of who is asked, prompts apart.

    Without `here` nothing is looked for that only the machine which runs must have: keys, weights.
    """
    config = run.config
    if "generate" in stages:
        check_teacher(config.teacher, run.task, here=here)
        check_writer(config.prompts, config.teacher, run.task, here=here)
    if "curate" in stages or ("generate" in stages and gives_candidates(config.teacher)):
        check_jury(config.jury.judges, run.task, here=here)
    if "train" in stages:
        check_settings(config.student, config.train)
        require_answers_for(config)
    if {"evaluate", "publish", "deploy"} & set(stages):
        require_servable(config.student.tuning)


def require_answers_for(config: RunConfig) -> None:
    """Raise ConfigError where the teacher will not bring what the method learns from."""
    method = config.train.method
    if method == "dpo" and not config.train.dpo.pairs and not gives_candidates(config.teacher):
        raise ConfigError(
            "train.method 'dpo' needs several answers a prompt, and the teacher gives one; set "
            "teacher.samples to 2 or more, take several teachers, or give pairs in train.dpo.pairs"
        )
    if method == "dpo" and config.train.dpo.pairs:
        open_source(config.train.dpo.pairs)
    asked = [member for member in members_of(config.teacher) if hasattr(member, "reasoning")]
    if method == "cot" and asked and not any(member.reasoning for member in asked):
        raise ConfigError(
            "train.method 'cot' needs reasoning, and no teacher is asked for any; set "
            "teacher.reasoning = true, or take method 'sft'"
        )


def require_servable(tuning: str) -> None:
    """Raise ConfigError for a student that no engine here can hold as an adapter."""
    why = {
        "dora": "vLLM loads no DoRA adapter",
        "full": "a whole model is no adapter that a shared base could hold",
    }
    if tuning in why:
        raise ConfigError(
            f"student.tuning {tuning!r} can be trained and not evaluated or served: {why[tuning]}; "
            "stop after training with `--until train`, or take 'lora', 'rslora' or 'qlora'"
        )
