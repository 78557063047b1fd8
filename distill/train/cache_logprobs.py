"""Ask a teacher once and keep its distributions, so that it need not fit beside the student.

Records are encoded as for training and scored shard by shard on Ray Data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError, DistilleryError, StageError, root_cause
from cluster.storage import Store
from distill.batches import drain, failed_block
from distill.train.config import StudentConfig, TrainConfig
from distill.train.fit import preparing_environment
from distill.train.logprobs_writer import TOKENS_PER_SHARD, plan_cache, write_shard

Progress = Callable[[int, int, float], None]
"""Called with (tokens read, tokens in all, seconds since the first shard was asked for)."""


@dataclass(frozen=True)
class CacheResult:
    """What a cache came to; tokens are completion tokens where not said otherwise."""

    folder: str
    num_records: int
    num_tokens: int
    num_bytes: int
    asked_tokens: int
    """Prompt and completion tokens that the teacher read in this call; 0 if all was there."""
    seconds: float
    dropped: list[str]
    """Records above `student.max_length`, which training drops as well."""
    note: str
    """What a person should know about the two vocabularies; mostly empty."""


@dataclass(frozen=True)
class ScorerConfig:
    """What a scoring worker is told; the shards come through the object store."""

    teacher: str
    store_uri: str
    top_k: int
    temperature: float
    vocabulary_size: int
    threads: int
    on_gpu: bool


def cache_logprobs(
    student: StudentConfig,
    train: TrainConfig,
    *,
    records: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    accelerator: str | None = None,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    on_progress: Progress | None = None,
) -> CacheResult:
    """Write the cache that training with `train.kd` reads, on the connected Ray.

    A second call asks only for the shards that are missing. `train.workers` teachers work side by
    side, one GPU each with an accelerator. Raises ConfigError or DataError before the teacher is
    loaded for what can be known then, and StageError when it cannot go on.
    """
    import ray

    kd = train.kd.model_copy(update={"cache": cache_location(train.kd.cache)})
    env = {"env_vars": preparing_environment()}
    try:
        task = ray.remote(num_cpus=0, num_returns=2)(_prepare).options(runtime_env=env)
        about_ref, shards_ref = task.remote(
            student,
            train.model_copy(update={"kd": kd}),
            [*records, *validation],
            tokens_per_shard,
        )
        about: dict[str, Any] = ray.get(about_ref)
        started = time.monotonic()
        if about["missing"]:
            told = ScorerConfig(
                teacher=kd.teacher,
                store_uri=about["folder"],
                top_k=kd.top_k,
                temperature=kd.temperature,
                vocabulary_size=about["vocabulary_size"],
                threads=train.threads_per_worker,
                on_gpu=accelerator is not None,
            )
            gpu = {"num_gpus": 1, "accelerator_type": accelerator} if accelerator else {}
            items = [{"shard": name} for name in about["missing"]]
            scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _ShardScorer,
                fn_constructor_args=(told, [shards_ref]),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(train.workers, len(items))),
                runtime_env=env,
                **(gpu or {"num_cpus": 1}),
            )
            drain(
                scored,
                total=about["missing_tokens"],
                on_progress=on_progress
                and (lambda done, all_: on_progress(done, all_, time.monotonic() - started)),
            )
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, DistilleryError):
            raise cause from None
        raise StageError(
            f"asking the teacher failed: {type(cause).__name__}: {cause}; the shards that are "
            "written stay, and the same command goes on from there"
        ) from error
    store = Store(about["folder"])
    return CacheResult(
        folder=store.path(),
        num_records=about["num_records"],
        num_tokens=about["num_tokens"],
        num_bytes=sum(info.size for info in store.fs.get_file_info(about["paths"])),
        asked_tokens=about["missing_tokens"],
        seconds=round(time.monotonic() - started, 2),
        dropped=about["dropped"],
        note=about["note"],
    )


def cache_location(uri: str) -> str:
    """Return `kd.cache` as workers in other folders find it: a path is made absolute."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _prepare(
    student: StudentConfig,
    train: TrainConfig,
    records: list[dict[str, Any]],
    tokens_per_shard: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare, encode and plan: returns a summary and the missing shards by name."""
    from transformers import AutoTokenizer

    from distill.train.cache_key import cache_key
    from distill.train.encode import check_template
    from distill.train.items import make_items
    from distill.train.vocabulary import load_vocabulary

    kd = train.kd
    if not kd.teacher:
        raise ConfigError("train.kd.teacher: is empty; give the teacher's folder or hub name")
    vocabulary = load_vocabulary(student=student.model, teacher=kd.teacher)
    tokenizer = AutoTokenizer.from_pretrained(student.model)
    check_template(tokenizer, model=student.model)
    # The very sequences that training will look up.
    made = make_items(tokenizer, records, train=train, max_length=student.max_length)
    encoded = [sequence for item in made.items for sequence in item.sequences]
    if not encoded:
        raise DataError(
            f"no record is left to ask the teacher about ({len(made.too_long)} above "
            f"student.max_length {student.max_length}); give records or raise max_length"
        )
    key = cache_key(kd, vocabulary=vocabulary, tokenizer=tokenizer, records=encoded)
    store, shards, missing = plan_cache(kd.cache, key, encoded, tokens_per_shard=tokens_per_shard)
    about = {
        "folder": store.uri,
        "paths": [store.path(shard.name) for shard in shards],
        "missing": [shard.name for shard in missing],
        "missing_tokens": sum(shard.num_tokens for shard in missing),
        "num_records": sum(len(shard.records) for shard in shards),
        "num_tokens": sum(r.num_completion for shard in shards for r in shard.records),
        "vocabulary_size": vocabulary.size,
        "dropped": made.too_long,
        "note": vocabulary.note,
    }
    return about, {shard.name: shard for shard in missing}


class _ShardScorer:
    """A Ray Data actor: loads the teacher at its first shard, then scores and writes shards."""

    def __init__(self, told: ScorerConfig, shards: list[Any]):
        import ray

        self._told = told
        self._shards = ray.get(shards[0])
        self._store = Store(told.store_uri)
        self._scorer: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        try:
            # Here and not in the constructor: what is raised arrives as it was.
            self._scorer = self._scorer or self._load()
            shards = [self._shards[str(name)] for name in batch["shard"]]
            for shard in shards:
                write_shard(self._store, shard, self._scorer(shard.records))
        except Exception:
            return failed_block()
        return {"done": [sum(shard.num_tokens for shard in shards)], "error": [b""]}

    def _load(self) -> Any:
        import torch

        from distill.train.teacher_logprobs import TeacherScorer

        told = self._told
        if not told.on_gpu:
            torch.set_num_threads(told.threads)
        return TeacherScorer(
            told.teacher,
            device=torch.device("cuda" if told.on_gpu else "cpu"),
            top_k=told.top_k,
            temperature=told.temperature,
            vocabulary_size=told.vocabulary_size,
        )
