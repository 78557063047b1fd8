"""The configuration of a whole run, and the checks that cross its sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from cluster.config import ClusterConfig, RegistryConfig, StrictModel, load_config
from distill.config import (
    CurateConfig,
    EvaluateConfig,
    GatesConfig,
    JuryConfig,
    PromptsConfig,
    TaskConfig,
)
from distill.monitor.config import MonitorConfig
from distill.relabel.config import RelabelConfig
from distill.teach.config import ProgramTeacher, TeacherConfig
from distill.train.config import StudentConfig, TrainConfig
from distill.tune.config import TuneConfig
from serve.config import ServeConfig


class RunFolderConfig(StrictModel):
    """Where a run keeps its artefacts."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run; its folder is `<root>/<name>-<digest of what makes the student>`."""
    root: str = "runs"
    """Folder of all runs; `<root>/latest` is the newest."""


class RunConfig(StrictModel):
    """One TOML file a run."""

    run: RunFolderConfig = RunFolderConfig()
    task: TaskConfig
    prompts: PromptsConfig = PromptsConfig()
    teacher: TeacherConfig = ProgramTeacher()
    curate: CurateConfig = CurateConfig()
    jury: JuryConfig = JuryConfig()
    student: StudentConfig
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gates: GatesConfig = GatesConfig()
    registry: RegistryConfig = RegistryConfig()
    serve: ServeConfig = ServeConfig()
    monitor: MonitorConfig = MonitorConfig()
    relabel: RelabelConfig = RelabelConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        problems = []
        if self.student.rank > self.serve.max_lora_rank:
            problems.append(
                f"student.rank {self.student.rank} is above serve.max_lora_rank "
                f"{self.serve.max_lora_rank}: no replica could load the adapter; "
                "raise the one or lower the other"
            )
        if self.student.max_length > self.serve.max_model_len:
            problems.append(
                f"student.max_length {self.student.max_length} is above serve.max_model_len "
                f"{self.serve.max_model_len}: the student would learn from records that the "
                "server refuses; raise the one or lower the other"
            )
        if self.evaluate.max_tokens >= self.serve.max_model_len:
            problems.append(
                f"evaluate.max_tokens {self.evaluate.max_tokens} must be below "
                f"serve.max_model_len {self.serve.max_model_len}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_run_config(paths: Sequence[str | Path], *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's TOML files and command-line overrides; ConfigError lists every problem."""
    return load_config(RunConfig, paths, overrides=overrides)
