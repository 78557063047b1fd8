"""Build, deploy and stop the serving application: model replicas behind the gateway."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import cpu_engine
from cluster.errors import PrerequisiteError, StageError
from cluster.heap import WORKER_EXTENSION
from cluster.lora_rank import engine_rank
from cluster.models import model_location, model_name
from cluster.session import require_port
from cluster.storage import Store
from serve.autoscale import LOOK_BACK_S, METRICS_INTERVAL_S, Scaling
from serve.config import ServeConfig

if TYPE_CHECKING:
    from serve.quality.gate import QualityParts
    from serve.routing.router import RoutingParts

REPLICA_DEPLOYMENT = "replica"
GATEWAY_DEPLOYMENT = "gateway"
GATEWAY_ENV = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
"""Its event loop only passes on: a router in a thread of its own would be two more hand-overs."""
REPLICA_CPUS = 2
"""Logical CPUs of a replica on CPU: one for Serve's actor, one for its engine."""


def base_name(config: ServeConfig, base_model: str) -> str:
    """Return the name under which clients ask for the bare base model."""
    return config.base_model_name or model_name(base_model)


def engine_config(config: ServeConfig, *, base_model: str, accelerator: str | None) -> Any:
    """Return Ray Serve LLM's LLMConfig of one replica."""
    from ray.serve.llm import LLMConfig

    from serve.local_model import LocalFolder

    # vLLM's own CPU operators answer base-model rows wrongly once every slot is filled, so on CPU
    # one slot more than residents stays empty. It costs memory of one adapter.
    spare_slots = 0 if accelerator else 1
    slots = config.max_loras + spare_slots
    engine: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": config.max_model_len,
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(slots, config.max_cpu_loras),
        "max_lora_rank": engine_rank(config.max_lora_rank),
        "disable_log_stats": False,
    }
    hardware: dict[str, Any]
    if accelerator is None:
        engine |= cpu_engine.engine_arguments(kv_cache_gb=config.kv_cache_gb)
        engine["worker_extension_cls"] = WORKER_EXTENSION
        hardware = {
            "accelerator_config": {"kind": "cpu"},
            "runtime_env": {
                "env_vars": cpu_engine.environment(
                    kv_cache_gb=config.kv_cache_gb, num_threads=config.cpu_threads
                )
            },
        }
    else:
        hardware = {"accelerator_type": accelerator}
    if Path(base_model).is_dir():
        hardware["callback_config"] = {"callback_class": LocalFolder}
    return LLMConfig(
        model_loading_config={
            "model_id": base_name(config, base_model),
            "model_source": base_model,
        },
        engine_kwargs=engine | config.engine,
        deployment_config={
            "name": REPLICA_DEPLOYMENT,
            "max_ongoing_requests": config.max_ongoing_requests,
            "max_queued_requests": config.max_queued_requests,
            **scaling_config(config),
        },
        **hardware,
    )


def scaling_config(config: ServeConfig) -> dict[str, Any]:
    """Return a fixed number of replicas, or Ray Serve's AutoscalingConfig with our policy."""
    if not config.max_replicas:
        return {"num_replicas": config.replicas}
    policy = "serve.autoscale:LatencyPolicy"
    return {
        "autoscaling_config": {
            "min_replicas": config.min_replicas,
            # One replica first even if none may stay: it proves the aliases before they go live.
            "initial_replicas": max(1, config.min_replicas),
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "policy": {
                "policy_function": policy,
                "policy_kwargs": config.model_dump(include=set(Scaling.__dataclass_fields__)),
            },
            # The policy keeps its own delays: Serve's would be added to them.
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "downscale_to_zero_delay_s": 0.0,
            # Serve's own 30 s and 10 s would show a burst to the policy half a minute late.
            "look_back_period_s": LOOK_BACK_S,
            "metrics_interval_s": METRICS_INTERVAL_S,
        }
    }


def max_resident(config: ServeConfig, accelerator: str | None) -> int:
    """Return how many adapters a replica holds: its slots on CPU, its host memory on a GPU."""
    return config.max_loras if accelerator is None else max(config.max_loras, config.max_cpu_loras)


def build_app(
    config: ServeConfig,
    *,
    base_model: str,
    registry_uri: str,
    accelerator: str | None,
    quality: Mapping[str, QualityParts] | None = None,
    routing: Mapping[str, RoutingParts] | None = None,
) -> Any:
    """Return the `ray.serve` Application: gateway and replicas, bound together.

    `base_model` is a model folder that every node sees, or a hub name; `registry_uri` likewise.
    `quality` and `routing` are the parts of these sections, which only `jobs` can make.
    """
    from ray.serve.llm import build_llm_deployment

    from serve.replica import ModelReplica

    location = model_location(base_model)
    registry = _absolute(registry_uri)
    replicas = build_llm_deployment(
        engine_config(config, base_model=location, accelerator=accelerator),
        name_prefix="",
        deployment_cls=ModelReplica,
        bind_kwargs={
            "registry_uri": registry,
            "base_model": location,
            "on_cpu": accelerator is None,
            "max_rank": config.max_lora_rank,
            "max_resident": max_resident(config, accelerator),
            "cache": str(Path(tempfile.gettempdir()) / f"distillery-adapters-{os.getuid()}"),
        },
    )
    located = config.model_copy(
        update={
            field: _absolute(uri)
            for field in ("request_log", "keys", "key_usage")
            if (uri := getattr(config, field))
        }
    )
    return gateway_deployment(accelerator=accelerator).bind(
        replicas,
        config=located,
        base_name=base_name(config, base_model),
        registry_uri=registry,
        quality=dict(quality or {}),
        routing=dict(routing or {}),
    )


def gateway_deployment(*, accelerator: str | None) -> Any:
    """Return the gateway's `ray.serve` Deployment, to be bound to a handle of replicas."""
    from ray import serve as ray_serve

    from serve.gateway import Gateway

    return ray_serve.deployment(
        Gateway,
        name=GATEWAY_DEPLOYMENT,
        # It never waits for a CPU of its own: replicas' queues are what limits.
        max_ongoing_requests=100_000,
        ray_actor_options={
            "num_cpus": 0 if accelerator is None else 1,
            "runtime_env": {"env_vars": GATEWAY_ENV},
        },
    )


def deploy(
    config: ServeConfig,
    *,
    base_model: str,
    registry_uri: str,
    accelerator: str | None,
    quality: Mapping[str, QualityParts] | None = None,
    routing: Mapping[str, RoutingParts] | None = None,
) -> str:
    """Serve on the connected Ray; returns the base URL once replicas are warm and routes live.

    PrerequisiteError before anything loads: no Ray, a missing model folder, a taken port, too few
    CPUs. StageError with the engine's last words when it fails or takes `startup_timeout_s`.
    """
    import ray
    from ray import serve as ray_serve

    if not ray.is_initialized():
        raise PrerequisiteError("Ray is not connected. Call ray.init() or ray start first.")
    model_location(base_model)
    http_options(config)
    _check_port(config)
    _check_cpus(config, accelerator)
    deadline = time.monotonic() + config.startup_timeout_s
    ray_serve.start(
        proxy_location=proxy_location(config),
        http_options=http_options(config),
    )
    app = build_app(
        config,
        base_model=base_model,
        registry_uri=registry_uri,
        accelerator=accelerator,
        quality=quality,
        routing=routing,
    )
    target = ray_serve.RunTarget(
        target=app,
        name=config.app_name,
        route_prefix="/",
        # One line a request costs more than the gateway's own work, and says less than metrics.
        logging_config={"enable_access_log": False},
    )
    ray_serve.run_many([target], wait_for_applications_running=False)
    try:
        _wait_until_running(config, deadline=deadline)
    except StageError:
        shutdown(config.app_name)
        raise
    return base_url(config)


def http_options(config: ServeConfig) -> dict[str, Any]:
    """Return Ray Serve's HTTPOptions; PrerequisiteError if a file of TLS is not there."""
    options: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "keep_alive_timeout_s": config.keep_alive_s,
    }
    for field in ("tls_cert", "tls_key"):
        file = getattr(config, field)
        if file and not os.access(file, os.R_OK):
            raise PrerequisiteError(f"serve.{field} {file!r} cannot be read; give a PEM file.")
    if config.tls_cert:
        options |= {
            "ssl_certfile": str(Path(config.tls_cert).absolute()),
            "ssl_keyfile": str(Path(config.tls_key).absolute()),
        }
    return options


def base_url(config: ServeConfig) -> str:
    """Return where clients on this machine find the gateway; OpenAI's base is `/v1` below it."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    scheme = "https" if config.tls_cert else "http"
    # RFC 3986: an IPv6 address stands in brackets, or its end would be read as the port.
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def shutdown(app_name: str) -> None:
    """Stop the application; the last one takes Ray Serve, and with it the port, along."""
    from ray import serve as ray_serve

    applications = ray_serve.status().applications
    if app_name in applications:
        ray_serve.delete(app_name)
    if not set(applications) - {app_name}:
        ray_serve.shutdown()


def _wait_until_running(config: ServeConfig, *, deadline: float) -> None:
    from ray import serve as ray_serve

    while True:
        status = ray_serve.status().applications.get(config.app_name)
        state = str(getattr(status, "status", "NOT_STARTED"))
        if state.endswith("RUNNING"):
            break
        if state.endswith(("DEPLOY_FAILED", "UNHEALTHY")):
            raise StageError(f"serving failed to start: {_last_words(status)}")
        if time.monotonic() > deadline:
            raise StageError(
                f"serving was not up within serve.startup_timeout_s = {config.startup_timeout_s:g}"
                f" s: {_last_words(status)}. Raise the limit, or look into the replica's log."
            )
        time.sleep(0.25)
    gateway = ray_serve.get_app_handle(config.app_name)
    while not gateway.is_ready.remote().result(timeout_s=30):
        if time.monotonic() > deadline:
            raise StageError(
                "the replicas are up, but the registry's aliases were not loaded within "
                f"serve.startup_timeout_s = {config.startup_timeout_s:g} s."
            )
        time.sleep(0.1)


def _last_words(status: Any, *, max_lines: int = 4) -> str:
    """Return the end of what Serve or the engine said: the cause stands at the bottom."""
    if status is None:
        return "Ray Serve does not know the application"
    messages = [d.message for d in status.deployments.values() if d.message] or [status.message]
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return " | ".join([line for line in lines if line][-max_lines:]) or "no message"


def proxy_location(config: ServeConfig) -> str:
    """Where Ray Serve runs proxies: nowhere if the gateway listens itself."""
    if config.is_direct:
        return "Disabled"
    return "HeadOnly" if config.is_loopback else "EveryNode"


def _check_port(config: ServeConfig) -> None:
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        running = client.http_config
        if (running.host, running.port) != (config.host, config.port):
            raise PrerequisiteError(
                f"Ray Serve already runs on this cluster at {running.host}:{running.port}; it has "
                f"one address. Set serve.host and serve.port to it, or shut Serve down first "
                f"(asked for {config.host}:{config.port})."
            )
        return
    require_port(config.port, field="serve.port", host=config.host)


def _check_cpus(config: ServeConfig, accelerator: str | None) -> None:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    # On several nodes, or with an autoscaler, what is missing now may still come.
    if accelerator is not None or len(nodes) != 1:
        return
    available = ray.available_resources().get("CPU", 0)
    replicas = max(1, config.min_replicas) if config.max_replicas else config.replicas
    needed = replicas * REPLICA_CPUS
    if available < needed:
        raise PrerequisiteError(
            f"{replicas} replica(s) need {needed} of Ray's logical CPUs, {available:g} are "
            "free: serving would wait for ever. Raise cluster.logical_cpus or lower serve.replicas "
            "(serve.min_replicas)."
        )


def _absolute(uri: str) -> str:
    store = Store(uri)
    return store.root if store.is_local else uri
