"""Configuration of the training: student, method, Ray Train, DeepSpeed and the optimiser."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cluster import processor
from cluster.config import StrictModel


class StudentConfig(StrictModel):
    """The small model that learns."""

    model: str
    """Local folder or hub name of a causal language model with a chat template."""
    max_length: int = Field(default=1024, ge=16)
    """Longest prompt plus completion in tokens; longer records are dropped and counted."""
    tuning: Literal["lora", "rslora", "dora", "qlora", "full"] = "lora"
    """What is trained: `lora` (Hu et al. 2021), `rslora` (scale alpha / √rank, Kalajdzievski 2023),
    `dora` (a trained magnitude beside the direction, Liu et al. 2024), `qlora` (LoRA over a base in
    NF4 with double quantisation, Dettmers et al. 2023), or `full`: every weight."""
    rank: int = Field(default=16, ge=1, le=512)
    """LoRA rank r (Hu et al. 2021); 4–8 style, 16–32 domain, 64 reasoning."""
    alpha: float = Field(default=32.0, gt=0)
    """LoRA scale: the update is alpha / rank · B A x."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Modules that get an adapter; `all-linear` is every linear layer but the output head."""


Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


class CotConfig(StrictModel):
    """`cot`: the student writes the reasoning, then the answer."""

    rationale_weight: float = Field(default=1.0, ge=0)
    """Weight of a reasoning token's loss."""
    answer_weight: float = Field(default=1.0, gt=0)
    """Weight of an answer token's loss."""


class MultitaskConfig(StrictModel):
    """`multitask`: L_label + alpha · L_rationale + beta · L_response, distilling step by step.

    Each L is a mean over its own tokens of the step (Hsieh et al. 2023, eq. 3, and a third part).
    """

    alpha: float = Field(default=0.5, ge=0)
    """Weight of the rationale's loss."""
    beta: float = Field(default=0.5, ge=0)
    """Weight of the whole response's loss."""


class KDConfig(StrictModel):
    """`kd`: weight · T² · KD(teacher, student) + (1 − weight) · CE (Hinton et al. 2015)."""

    teacher: str = ""
    """Local folder or hub name of the teacher, a causal language model."""
    divergence: Divergence = "forward_kl"
    """`forward_kl` KL(teacher ‖ student), `reverse_kl` KL(student ‖ teacher) (MiniLLM, Gu et al.
    2024), `jsd` the generalised Jensen–Shannon divergence of `beta` (GKD, Agarwal et al. 2024)."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Teacher's share of the mixture in `jsd`."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are softened by it."""
    weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the divergence; the rest is cross-entropy on the teacher's text."""
    source: Literal["online", "cache"] = "online"
    """`online` runs the teacher beside the student; `cache` reads what `jobs.cache_logprobs` wrote
    before, so that the teacher need not fit beside the student."""
    top_k: int = Field(default=32, ge=1)
    """Log-probabilities a token in the cache; what is left is kept as one tail."""
    cache: str = "runs/logprobs"
    """Folder or URI of all caches; each lies under the digest of teacher, records and `top_k`."""


class OnPolicyConfig(StrictModel):
    """`on_policy`: the student answers, the teacher scores each token (GKD: Agarwal 2024)."""

    teacher: str = ""
    """Local folder or hub name of the teacher, a causal language model."""
    divergence: Divergence = "jsd"
    """As `kd.divergence`."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Teacher's share of the mixture in `jsd`."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are softened by it."""
    student_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the records answered by the student (λ); the others keep the teacher's answer."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest answer that is sampled."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Temperature at which the student answers."""
    sample_every: int = Field(default=10, ge=1)
    """Optimiser steps that are sampled at once, with the adapter as it is then."""


class DPOConfig(StrictModel):
    """`dpo`: direct preference optimisation (Rafailov et al. 2023, eq. 7)."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the tie to the reference, which is the student with its adapter off."""
    pairs: str = ""
    """File of preference pairs (`prompt`, `chosen`, `rejected`, any of the shapes of `distillery
    convert`); empty makes them of this run's answers: best against worst of one prompt."""
    min_margin: float = Field(default=0.1, ge=0, le=1)
    """Least difference of the jury's overall scores between the two of a pair."""


class MixConfig(StrictModel):
    """General-domain records mixed in against forgetting."""

    data: str
    """File or folder of records in any shape that `distillery convert` reads."""
    fraction: float = Field(default=0.1, gt=0, lt=1)
    """Their share of the training records; they are drawn anew by `seed`."""


class TrackConfig(StrictModel):
    """Where the figures go besides the run folder, whose TensorBoard files are always written.

    Keys come from the environment: `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD` or
    `MLFLOW_TRACKING_TOKEN`, `WANDB_API_KEY`.
    """

    mlflow: str = ""
    """MLflow tracking URI, such as `http://mlflow:5000` or `sqlite:///mlflow.db`; empty: none."""
    wandb: str = ""
    """Weights & Biases project; empty: none."""
    name: str = ""
    """Name of the run there; empty takes the run folder's."""

    @model_validator(mode="after")
    def _no_secret(self) -> TrackConfig:
        if "@" in urlsplit(self.mlflow).netloc:
            # The value itself would be printed, and written beside the run.
            raise ValueError(
                "mlflow must not hold a user or password; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return self


# What only says how fast or how safely the same result is made.
RUNNING = ("max_failures", "keep_checkpoints", "track", "workers", "threads_per_worker", "liger")


class TrainConfig(StrictModel):
    """The method, Ray Train, DeepSpeed and the optimiser."""

    method: Literal["sft", "cot", "multitask", "kd", "on_policy", "dpo"] = "sft"
    """`sft` learns the completions, `cot` reasoning and answer, `multitask` label, rationale and
    response, `kd` the teacher's distributions, `on_policy` the teacher's view of the student's own
    answers, `dpo` preference pairs. The section of the same name has its settings."""
    cot: CotConfig = CotConfig()
    multitask: MultitaskConfig = MultitaskConfig()
    kd: KDConfig = KDConfig()
    on_policy: OnPolicyConfig = OnPolicyConfig()
    dpo: DPOConfig = DPOConfig()
    mix: MixConfig | None = None
    track: TrackConfig = TrackConfig()
    workers: int = Field(default=2, ge=1)
    """Ray Train workers; with `[cluster] accelerator` one GPU each."""
    in_process: bool = False
    """Train in the process that calls, with one worker on CPU and without Ray Train: to step
    through it with a debugger, or to try a setting in seconds. A killed one starts over."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads of each worker when there is no accelerator."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage (Rajbhandari et al. 2020)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in CPU memory: the `optimizer` (ZeRO 1 to 3), or `all`, the parameters
    too (ZeRO 3 only; Ren et al. 2021)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; the optimiser keeps float32 master weights. `auto` is bf16 on a GPU and on
    processors that have its products (AVX-512 BF16, AMX, Arm's BF16), which are eight times slower
    on others, and fp32 there."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training records."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimiser steps, for trials."""
    batch_size: int = Field(default=16, ge=1)
    """Records per optimiser step over all workers."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Records per worker and forward pass; the rest is gradient accumulation. Where it evens out
    the workers' tokens, one takes up to a quarter more, short ones, and another fewer."""
    learning_rate: float = Field(default=4e-4, gt=0, le=1)
    """Peak rate."""
    learning_rates: dict[str, float] = Field(default_factory=dict)
    """Rates of parameters by a part of their name, as factors of `learning_rate`: `{"lora_B" = 16}`
    is LoRA+ (Hayou et al. 2024). The first that fits counts."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; after it a cosine takes it to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more compute."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's kernels on CUDA (`pip install liger-kernel`) for norms, rotation and SwiGLU: `auto`
    takes them where they are installed and know the model, `on` is an error where they are not."""
    prefix_group: int = Field(default=1, ge=1)
    """Records with a long common beginning are drawn into a step in groups of up to so many, so
    that it is computed once. Above 1 the steps are less mixed."""
    eval_every: int = Field(default=20, ge=1)
    """Optimiser steps between two looks at the validation loss; each writes a checkpoint."""
    patience: int = Field(default=3, ge=1)
    """Looks without a better validation loss before training stops early."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, best validation loss first; the latest is always kept."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures survived by restarting from the last checkpoint."""
    seed: int = Field(default=17, ge=0)
    """Seed of the adapter's initial weights and of the shuffle."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Merged over the DeepSpeed configuration that the fields above make."""

    def for_hardware(self, accelerator: str | None) -> TrainConfig:
        """Return the same with `precision` decided for GPUs of this kind, or for this processor."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": processor.precision(accelerator)})

    @property
    def in_bf16(self) -> bool:
        """Whether it computes in bfloat16; asked once `for_hardware` has decided."""
        assert self.precision != "auto"
        return self.precision == "bf16"

    @model_validator(mode="after")
    def _fields_agree(self) -> TrainConfig:
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of workers {self.workers}"
            )
        if self.in_process and self.workers != 1:
            raise ValueError(
                f"in_process trains with one worker, workers is {self.workers}; set workers 1"
            )
        if self.method in ("kd", "on_policy") and not getattr(self, self.method).teacher:
            raise ValueError(
                f"{self.method}.teacher is empty: method {self.method!r} compares with a teacher "
                "model; give its folder or hub name"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"offload 'all' needs zero_stage 3, this has {self.zero_stage}: lower stages keep "
                "whole parameters on each worker; take offload 'optimizer' or zero_stage 3"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload 'optimizer' needs zero_stage 1, 2 or 3; this has 0")
        broken = [name for name, factor in self.learning_rates.items() if factor < 0]
        if broken:
            raise ValueError(f"learning_rates.{broken[0]} must not be negative")
        return self
