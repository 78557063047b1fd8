"""Configuration of the online side."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from cluster.config import StrictModel
from cluster.masking import MaskingConfig


class ServeConfig(StrictModel):
    """One vLLM base, the registry's adapters, an OpenAI-compatible gateway in front."""

    host: str = "127.0.0.1"
    """Address the gateway listens on; there are no API keys yet, so loopback is the default."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the gateway."""
    app_name: str = "distillery"
    """Name of the Ray Serve application."""
    replicas: int = Field(default=1, ge=1)
    """Model replicas; a fixed number unless `max_replicas` is set."""
    max_replicas: int = Field(default=0, ge=0, le=10_000)
    """Above 0 replicas follow the load and the P90 objective, up to this number."""
    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas; 0 stops the last one after `idle_s`, and the next request starts it. It then
    waits for the start, so `request_timeout_s` must be longer."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests under way or waiting that each replica should have."""
    slo_p90_s: float = Field(default=0.0, ge=0)
    """Objective for the P90 of a request, seconds: more replicas start when it is missed, and fewer
    stay only where it is expected to hold; 0 looks at requests only."""
    upscale_delay_s: float = Field(default=0.0, ge=0)
    """More replicas must be wanted for this long."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """Fewer replicas must be wanted for this long."""
    idle_s: float = Field(default=900.0, ge=0)
    """Seconds without a request after which the last replica stops, if `min_replicas` is 0."""
    base_model_name: str = ""
    """Name clients use for the bare base model; empty takes the base model folder's name."""
    max_model_len: int = Field(default=2048, ge=64)
    """Context length, prompt plus completion, in tokens."""
    max_loras: int = Field(default=4, ge=1)
    """Adapters that one batch can mix."""
    max_cpu_loras: int = Field(default=8, ge=1)
    """Adapters kept in host memory."""
    max_lora_rank: int = Field(default=16, ge=1)
    """Largest rank the replicas accept; a student above it is refused before it is trained."""
    kv_cache_gb: int = Field(default=1, ge=1)
    """KV cache on CPU, GiB."""
    cpu_threads: int = Field(default=0, ge=0)
    """Threads of a replica that runs on CPU; 0 takes every core of the machine that deploys."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests a replica works on at once; more wait in Ray Serve's queue."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that may wait for a replica; beyond that the gateway answers 503."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one request."""
    max_body_mb: int = Field(default=8, ge=1)
    """Largest request body, MiB; beyond that the gateway answers 413."""
    alias_poll_s: float = Field(default=0.5, gt=0)
    """How often the gateway looks whether an alias moved in the registry."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments."""
    request_log: str = ""
    """URI of the folder for the Parquet request log; empty switches it off."""
    request_log_sample: float = Field(default=1.0, ge=0, le=1)
    """Share of requests that are logged."""
    request_log_days: float = Field(default=90.0, ge=0)
    """Files of the request log older than this are removed; 0 keeps them for ever."""
    request_log_masking: MaskingConfig = MaskingConfig()
    """Personal data that is masked before a row is written; `kinds = []` masks nothing."""
    startup_timeout_s: float = Field(default=600.0, gt=0)
    """How long deployment may take before it is given up with the engine's last words."""

    @model_validator(mode="after")
    def _scaling_fits(self) -> ServeConfig:
        problems = []
        if self.max_replicas and self.min_replicas > self.max_replicas:
            problems.append(
                f"serve.min_replicas {self.min_replicas} is above serve.max_replicas "
                f"{self.max_replicas}; lower the one or raise the other"
            )
        if not self.max_replicas and self.min_replicas != 1:
            problems.append(
                f"serve.min_replicas {self.min_replicas} does nothing without serve.max_replicas; "
                "set that too, or serve.replicas for a fixed number"
            )
        if self.max_replicas and self.target_ongoing_requests > self.max_ongoing_requests:
            problems.append(
                f"serve.target_ongoing_requests {self.target_ongoing_requests:g} is above "
                f"serve.max_ongoing_requests {self.max_ongoing_requests}, the most one "
                "takes; lower the one or raise the other"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
