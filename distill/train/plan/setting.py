"""One thing to plan: a student, its training, its data and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cluster.processor import has_tiles_for
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import Architecture, read_architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.workload import Workload

FUSED_TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Setting:
    """A run as far as memory and speed are concerned; `train.workers` is the number of GPUs."""

    student: StudentConfig
    train: TrainConfig
    architecture: Architecture
    workload: Workload
    hardware: Hardware

    @cached_property
    def teacher(self) -> Architecture | None:
        """The teacher that runs beside the student, if the method has one."""
        method, kd = self.train.method, self.train.kd
        if method == "kd" and kd.source == "online":
            return read_architecture(kd.teacher)
        return read_architecture(self.train.on_policy.teacher) if method == "on_policy" else None

    @cached_property
    def precise(self) -> TrainConfig:
        """The training with its precision decided."""
        accelerator = None if self.hardware.kind == "cpu" else self.hardware.name
        return self.train.for_hardware(accelerator)

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight, a gradient and an activation that are computed with."""
        return 2 if self.precise.in_bf16 else 4

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.student.tuning == "full"

    @cached_property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.full:
            return self.architecture.parameters
        targets = self.architecture.adapted(self.student.target_modules)
        parameters = self.architecture.adapter_parameters(
            rank=self.student.rank, target_modules=self.student.target_modules
        )
        if self.student.tuning == "dora":  # one magnitude for every output (Liu et al. 2024)
            parameters += self.architecture.num_layers * sum(x.outputs for x in targets)
        return parameters

    @property
    def fused(self) -> bool:
        """Whether training takes the fused CPU step (`distill.train.cpu_model.why_not`)."""
        student, train, model = self.student, self.train, self.architecture
        targets = {linear.name for linear in model.adapted(student.target_modules)}
        return (
            self.hardware.kind == "cpu"
            and model.model_type == "llama"
            and student.tuning == "lora"
            and not student.dropout
            and not model.qkv_bias
            and targets == FUSED_TARGETS
            and not train.gradient_checkpointing
            and train.zero_stage != 3
        )

    @property
    def tiled(self) -> bool:
        """Whether the fused step's attention takes tiles and keeps no probabilities.

        As `distill.train.cpu_kernels.has_tiled_attention` decides it.
        """
        return self.fused and self.precise.in_bf16 and has_tiles_for(self.architecture.head_dim)

    @property
    def sequences_per_record(self) -> int:
        """DPO runs a chosen and a rejected answer for every record.

        A rationale, and the further tasks of `multitask`, are in the workload's lengths.
        """
        return 2 if self.train.method == "dpo" else 1
