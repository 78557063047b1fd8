"""vLLM on CPU cores inside Ray Serve LLM: one process fewer, and every core works."""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine


class CpuEngine(VLLMEngine):
    """Ray Serve LLM's vLLM engine, its one worker inside the engine's process.

    By default vLLM starts a worker process beside the engine's, keeps a core back, and the two
    spin on shared memory for each step: right for a large machine, slow on a small one.
    """

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        engine_args, frontend_args, engine_config = super()._prepare_engine_config(callback_ctx)
        parallel = engine_config.parallel_config
        if parallel.world_size == 1:
            # As a class: the name "uni" is turned back into "mp" on this platform.
            parallel.distributed_executor_backend = UniProcExecutor
        return engine_args, frontend_args, engine_config
