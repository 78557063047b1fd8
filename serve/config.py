"""Configuration of the online side."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from cluster import lora_rank
from cluster.config import StrictModel
from cluster.masking import MaskingConfig
from serve.quality.config import QualityConfig
from serve.routing.config import RoutingConfig


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(value: str) -> str:
    if not re.fullmatch(r"\*|https?://[A-Za-z0-9.\[\]:-]+", value):
        raise ValueError('write it as "https://app.example.com", without a path, or "*" for all')
    return value


class PriceConfig(StrictModel):
    """What the server's tokens cost, for quotas in dollars."""

    input_usd_per_mtok: float = Field(ge=0)
    """US dollars per million prompt tokens."""
    output_usd_per_mtok: float = Field(ge=0)
    """US dollars per million generated tokens."""


class ServeConfig(StrictModel):
    """One vLLM base, the registry's adapters, an OpenAI-compatible gateway in front."""

    host: str = "127.0.0.1"
    """Address the gateway listens on. One that other machines reach needs `keys`."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the gateway."""
    keys: str = ""
    """URI of the folder with API keys, see `distillery keys`; empty asks nobody for a key."""
    keys_poll_s: float = Field(default=2.0, gt=0)
    """How often the gateway looks for changed keys and writes what each used."""
    key_usage: str = ""
    """URI of the folder where each key's daily usage is kept; empty takes `usage` below `keys`."""
    allow_without_keys: bool = False
    """Listen on `host` for other machines without API keys, or on a loopback address for requests
    to other host names; something in front must check who asks."""
    price: PriceConfig | None = None
    """What keys' quotas in dollars count by; without it the list price of the base model's name."""
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(default=[])
    """Web pages' origins that browsers may call from, `["https://app.example.com"]`; none by
    default."""
    tls_cert: str = ""
    """PEM file with the certificate chain, on every node that listens; with `tls_key`: HTTPS."""
    tls_key: str = ""
    """PEM file with the certificate's private key."""
    keep_alive_s: int = Field(default=60, ge=1)
    """Idle connections are closed after this many seconds."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """A request's body must have arrived within this many seconds, or it is answered 408."""
    ingress: Literal["auto", "direct", "proxy"] = "auto"
    """Who listens: the gateway itself (`direct`, one process fewer on the way) or Ray Serve's proxy
    on every node (`proxy`, for clusters). `auto` is direct on a loopback address."""
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
    max_lora_rank: int = Field(default=16, ge=1, le=lora_rank.LARGEST)
    """Largest rank the replicas accept; a student above it is refused before it is trained.
    vLLM makes room for the next of its ranks: 1, 8, 16, 32, 64, 128, 256, 320, 512."""
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
    max_prompt_chars: int = Field(default=1_000_000, ge=1)
    """Longest prompt, messages and tools together, characters; beyond that the answer is 400."""
    max_choices: int = Field(default=128, ge=1)
    """Most answers to one request: `n` for each prompt."""
    alias_poll_s: float = Field(default=0.5, gt=0)
    """How often the gateway looks whether an alias moved in the registry."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments."""
    quality: dict[str, QualityConfig] = Field(default_factory=dict)
    """Checks and fallbacks by model name, `[serve.quality.reconcile]`; a name without a section is
    answered as the student answers."""
    routing: dict[str, RoutingConfig] = Field(default_factory=dict)
    """Where hard prompts go, by model name, `[serve.routing.reconcile]`; a name without a section
    keeps them all."""
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

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> ServeConfig:
        problems = []
        for name, section in self.routing.items():
            if section.to.partition("@")[0] == name:
                problems.append(
                    f"serve.routing.{name}.to {section.to!r} names the student itself; give "
                    'another adapter\'s name, or "teacher"'
                )
            quality = self.quality.get(name)
            if section.is_teacher and (quality is None or quality.usd_per_day is None):
                problems.append(
                    f"serve.routing.{name}.to is 'teacher' and none is configured; give "
                    f"[serve.quality.{name}] usd_per_day and, where it is not the run's teacher, "
                    f"[serve.quality.{name}.teacher], or name another adapter"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _front_is_safe(self) -> ServeConfig:
        problems = []
        if not (self.is_loopback or self.keys or self.allow_without_keys):
            problems.append(
                f"serve.host {self.host!r} is reached by other machines and nobody is asked for an "
                "API key; set serve.keys to a folder (`distillery keys create --keys FOLDER` makes "
                "the first key), or serve.allow_without_keys = true if something in front checks "
                'who asks, or serve.host = "127.0.0.1"'
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            problems.append(f"serve.{given} needs serve.{missing} beside it; give both or none")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def is_direct(self) -> bool:
        """Whether the gateway listens itself."""
        return self.ingress == "direct" or (self.ingress == "auto" and self.is_loopback)

    @property
    def is_private(self) -> bool:
        """Whether whoever reaches the gateway is taken for this machine's operator."""
        return self.is_loopback and not self.keys and not self.allow_without_keys

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine reach the gateway."""
        return is_loopback(self.host)
