"""A run: its folder, its stages, and what makes a finished stage still valid.

A stage's fingerprint is a digest of the configuration it depends on and of the stages before it.
A stage whose marker carries the same fingerprint is not run again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, digest_of, file_digest, folder_digests
from distill.tasks.task import Task, load_task
from distill.teach.config import AnyTeacher, ReplayTeacher, gives_candidates, members_of
from distill.teach.identity import parameters
from distill.train.config import RUNNING
from jobs.config import RunConfig
from jobs.display import Display, StepProgress

# Stage -> sections of the configuration that it depends on, in the order the stages run.
STAGES: dict[str, tuple[str, ...]] = {
    # and "teacher", of which only a part decides
    "generate": ("task", "prompts"),
    "curate": ("curate", "jury"),
    "train": ("student", "train"),
    "evaluate": ("evaluate",),
    "gate": ("gates",),
    "publish": ("registry",),
    "deploy": ("serve",),
}
# Fields that decide no result.
NEUTRAL = {"train": set(RUNNING)}

# What a stage would otherwise resume from or return as it is, when it is asked to do it again.
# Answers of a teacher are not among them: what was paid for is kept.
RESUMED_FROM = {"train": ("checkpoints", "train.json", "tensorboard", "samples")}


def stages_until(last: str) -> list[str]:
    """Return the stages up to `last`; ConfigError where there is none of that name."""
    if last not in STAGES:
        raise ConfigError(f"--until {last!r}: the stages are {', '.join(STAGES)}.")
    return list(STAGES)[: list(STAGES).index(last) + 1]


@dataclass(frozen=True)
class StageResult:
    """What a stage did, as the closing table shows it."""

    rows_in: int
    rows_out: int
    note: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


class Run:
    """One run of one configuration."""

    def __init__(self, config: RunConfig, display: Display):
        """Open the run's folder; it is made by the first stage that writes."""
        self.config = config
        self.display = display
        self._contents: dict[str, Any] = {}
        root = Path(config.run.root).expanduser().absolute()
        self.folder = root / f"{config.run.name}-{self.fingerprint('train')[:8]}"
        self.store = Store(self.folder)

    @cached_property
    def task(self) -> Task:
        """The task, loaded and checked."""
        return load_task(self.config.task.folder)

    def fingerprint(self, stage: str) -> str:
        """Digest of everything that decides a stage's result."""
        teacher = self.config.teacher
        # Its price decides what the cost table says, and changes no answer.
        parts: list[Any] = [self.task.digest, parameters(teacher), _prices(teacher)]
        for member in members_of(teacher):
            if isinstance(member, ReplayTeacher):
                from distill.teach.replay import replay_file

                parts.append(file_digest(replay_file(member, self.task)))
        if gives_candidates(teacher):
            parts.append(self.config.jury.model_dump(mode="json"))
        for name, sections in STAGES.items():
            for section in sections:
                model = getattr(self.config, section)
                parts.append(model.model_dump(mode="json", exclude=NEUTRAL.get(section)))
                parts += [self._content(path) for path in _files_named_in(section, model)]
            if name == stage:
                return digest_of(parts)
        raise ConfigError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}.")

    def _content(self, path: str) -> Any:
        """Digest of a local file or folder, taken once a run; a remote one goes by its name."""
        if path not in self._contents:
            local = Path(path).expanduser()
            self._contents[path] = (
                folder_digests(local) if local.is_dir()
                else file_digest(local) if local.is_file()
                else None
            )  # fmt: skip
        return self._contents[path]

    def finished(self, stage: str) -> StageResult | None:
        """The stage's result if it is done for this configuration."""
        path = f"stages/{stage}.json"
        if not self.store.exists(path):
            return None
        marker = self.store.read_json(path)
        if marker.pop("fingerprint") != self.fingerprint(stage):
            return None
        return StageResult(**marker)

    def unfinished(self, stages: Sequence[str], *, again: bool = False) -> list[str]:
        """Those of the stages that are still to be done; all of them if `again`."""
        return [stage for stage in stages if again or self.finished(stage) is None]

    def perform(
        self, stage: str, work: Callable[[Run, StepProgress], StageResult], *, again: bool = False
    ) -> StageResult:
        """Do a stage unless it is done, time it, mark it."""
        done = self.finished(stage)
        if done is not None and not again:
            self.display.say(f"✓ {stage:<9} {done.note} (done before)")
            return done
        if again:
            for path in RESUMED_FROM.get(stage, ()):
                self.store.remove(path)
        # What stands on this stage's last result, or on its failure, is done no more.
        for later in list(STAGES)[list(STAGES).index(stage) :]:
            self.store.remove(f"stages/{later}.json")
        self.write_config()
        self.point_latest()
        start = time.monotonic()
        with self.display.step(stage) as progress:
            result = work(self, progress)
        result = StageResult(**{**asdict(result), "seconds": round(time.monotonic() - start, 1)})
        self.store.write_json(
            f"stages/{stage}.json", {"fingerprint": self.fingerprint(stage), **asdict(result)}
        )
        self.display.say(f"✓ {stage:<9} {result.note} ({result.seconds:.0f} s)")
        return result

    def rows(self, path: str, *, stage: str) -> list[dict[str, Any]]:
        """Rows an earlier stage wrote; says which stage to run if they are missing."""
        if not self.store.exists(path):
            raise StageError(
                f"{self.folder}/{path} is missing: run the stage {stage!r} first "
                f"(`python -m jobs.{stage} --config …`, or `distillery run`)."
            )
        return self.store.read_rows(path)

    def write_config(self) -> None:
        """Put the resolved configuration beside what it made; it holds no secret."""
        self.store.write_json("config.json", self.config.model_dump(mode="json"))
        self.store.write_json(
            "task.json", {"digest": self.task.digest, **self.task.spec.model_dump(mode="json")}
        )

    def point_latest(self) -> None:
        """Make `<root>/latest` this run."""
        link = self.folder.parent / "latest"
        beside = link.with_name(f".latest-{os.getpid()}")
        if link.exists() and not link.is_symlink():
            return
        beside.unlink(missing_ok=True)
        beside.symlink_to(self.folder.name)
        beside.replace(link)

    def shown(self, path: str = "") -> str:
        """A path of the run, relative to where the person stands if that is shorter."""
        full = self.folder / path
        try:
            return str(full.relative_to(Path.cwd()))
        except ValueError:
            return str(full)

    def read_json(self, path: str) -> Any:
        """Read a JSON artefact."""
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


def _files_named_in(section: str, model: Any) -> list[str]:
    """Files of the user's that decide a stage's result beside the task's own."""
    if section == "curate":
        return list(model.contamination.files) if model.contamination else []
    if section == "train":
        mixed = [model.mix.data] if model.mix else []
        return [*mixed, *([model.dpo.pairs] if model.dpo.pairs else [])]
    return []


def _prices(teacher: AnyTeacher) -> list[Any]:
    prices = [teacher.price, *(member.price for member in members_of(teacher))]
    return [None if price is None else price.model_dump() for price in prices]
