"""A model replica: Ray Serve LLM's server plus adapters from the registry and a lean way in.

The gateway sends the parsed body once; it is validated once, here, by vLLM's own models, and the
answer goes back as the bytes that the client gets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from cluster.errors import RegistryError
from cluster.heap import WORKER_EXTENSION
from cluster.models import model_digest
from cluster.registry import Registry
from serve.adapters import AdapterFolders
from serve.engine_errors import explain_engine_error, prompt_length, raising
from serve.errors import ApiError, internal, not_ready, refused_model
from serve.fields import check_fields
from serve.gather import gathered
from serve.holders import announce
from serve.metrics import repeat, resident_gauge
from serve.observe import Usage, observe, observed
from serve.recent import RecentLatencies
from serve.residents import NoFreeSlot, Residents
from serve.routes import DEFAULT_ALIAS, NotLoaded
from serve.schemas import FIELDS, api_schemas, validated

log = logging.getLogger("ray.serve")

CHUNK_S = 0.01
WARM_PROMPT = "Reconcile the bank line with the ERP line. " * 8
WARM_BATCH = 8
SAMPLED = {"temperature": 1.0, "top_p": 0.9, "logprobs": 1}


class ModelReplica(LLMServer):
    """One vLLM engine with the registry's adapters; its constructor returns once it is warm."""

    async def __init__(  # type: ignore[misc]
        self,
        llm_config: Any,
        *,
        registry_uri: str,
        base_model: str,
        on_cpu: bool,
        max_rank: int,
        max_resident: int,
        cache: str,
    ):
        self._registry = Registry(registry_uri)
        self._max_rank = max_rank
        self._cache = cache
        self._base_model = base_model
        self._folders: AdapterFolders | None = None
        self._paths: dict[str, Path] = {}
        self._recent = RecentLatencies()
        self._residents = Residents(limit=max_resident, load=self._load, unload=self._unload)
        self._announced: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        engine_cls = None
        if on_cpu:
            from serve.cpu_engine import CpuEngine

            engine_cls = CpuEngine
        await super().__init__(llm_config, engine_cls=engine_cls)

    async def start(self) -> None:
        """Start the engine, load what the aliases point at, and answer once before being ready."""
        started = time.monotonic()
        digest = asyncio.create_task(asyncio.to_thread(model_digest, self._base_model))
        await super().start()
        client = self.engine._engine_client
        client.generate = observed(client.generate)
        self._folders = AdapterFolders(
            self._registry,
            base_digest=await digest,
            max_rank=self._max_rank,
            cache=self._cache,
        )
        self._set_residents = resident_gauge()
        self._telling = asyncio.create_task(repeat(self._tell))
        engine_s = time.monotonic() - started
        await self._warm(None)
        for model_id in await asyncio.to_thread(self._aliased):
            if why := await self.load_adapter(model_id):
                log.error("%s is not served: %s", model_id, why.reason)
        log.info("engine up after %.1f s, warm %.1f s", engine_s, time.monotonic() - started)

    def _tell(self) -> None:
        ids = self._residents.ids
        self._set_residents(len(ids))
        if set(ids) != self._announced:
            self._announced = set(ids)
            announce(ids)

    async def _start_engine(self) -> None:
        # Ray's own would also start a process that imports vLLM, to send usage statistics.
        await self.engine.start()

    def _aliased(self) -> list[str]:
        """Ids that aliases point at, `prod` first, as many as fit."""
        found: list[tuple[bool, str]] = []
        pins: list[str] = []
        try:
            for name in self._registry.names():
                for alias, version in self._registry.aliases(name).items():
                    found.append((alias != DEFAULT_ALIAS, f"{name}@v{version}"))
                for split in self._registry.splits(name).values():
                    found.append((True, f"{name}@v{split.version}"))
                pins += [f"{name}@v{version}" for version in self._registry.pins(name)]
        except Exception as error:
            # Without its registry a replica still serves the base; the gateway reports the rest.
            log.warning("cannot read the registry: %s", error)
        self._residents.pinned = frozenset(pins)
        return list(dict.fromkeys([*pins, *(m for _, m in sorted(found))]))[: self._residents.limit]

    async def load_adapter(self, model_id: str) -> NotLoaded | None:
        """Load and warm `name@v3`; returns `None`, or why it was refused."""
        try:
            async with self._holding(model_id):
                return None
        except RegistryError as error:
            reason = _for_clients(str(error), self._registry)
            return NotLoaded(reason, passes=isinstance(error, NoFreeSlot))
        except Exception as error:
            log.exception("%s could not be loaded", model_id)
            return NotLoaded(f"the engine could not load it ({type(error).__name__})")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve collects for the autoscaling policy: `finished` and `p90_s`."""
        return self._recent.stats()

    def api_schemas(self) -> dict[str, Any]:
        """JSON Schemas of requests and answers, for the OpenAPI description."""
        return api_schemas()

    def requests_in_engine(self) -> int:
        """Requests that the engine generates for or keeps waiting."""
        return int(self.engine._engine_client.get_num_unfinished_requests())

    async def unload_adapter(self, model_id: str) -> bool:
        """Unload a version once its requests have drained; whether it was loaded."""
        return await self._residents.drop(model_id)

    def pin_adapters(self, model_ids: list[str]) -> bool:
        """Keep these loaded, and no others but the least recently used."""
        self._residents.pinned = frozenset(model_ids)
        return True

    def resident_adapters(self) -> list[str]:
        """Adapters in the engine now, least recently used first."""
        return self._residents.ids

    @asynccontextmanager
    async def _holding(self, model_id: str | None) -> AsyncIterator[None]:
        """Keep an adapter, if one is asked for, verified and resident for the block."""
        if model_id is None:
            yield
            return
        if model_id not in self._paths:
            # Checked before anything leaves: a version that does not fit costs no other its slot.
            # Ids are immutable, so once is enough.
            assert self._folders is not None
            self._paths[model_id] = await asyncio.to_thread(self._folders.fetch, model_id)
        async with self._residents.hold(model_id):
            yield

    async def _load(self, model_id: str) -> None:
        from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig

        started = time.monotonic()
        await self.engine.resolve_lora(
            DiskMultiplexConfig(
                model_id=model_id,
                max_total_tokens=None,
                local_path=str(self._paths[model_id]),
                lora_assigned_int_id=0,
            )
        )
        try:
            await self._warm(model_id)
        except BaseException:
            await self._unload(model_id)
            raise
        log.info("%s loaded and warm in %.2f s", model_id, time.monotonic() - started)

    async def _unload(self, model_id: str) -> None:
        request = self.engine._oai_models.lora_requests.pop(model_id, None)
        if request is not None:
            # vLLM's own unload forgets the name only; this takes the weights out of the engine.
            client = self.engine._engine_client
            await client.remove_lora(request.lora_int_id)
            if self._llm_config.engine_kwargs.get("worker_extension_cls") == WORKER_EXTENSION:
                # Without it the engine's heap grew by a megabyte and more a swap (docs/log.md).
                await client.collective_rpc("return_free_memory")
            log.info("%s unloaded", model_id)

    async def _warm(self, model_id: str | None) -> None:
        """Generate: the first batch compiles and pages in kernels, for up to half a minute."""
        name = model_id or self._llm_config.model_id
        greedy = {"temperature": 0.0}
        # Sampling is compiled when it is first used, apart from greedy decoding; a batch runs
        # other kernels than one request, and each length of prompt others again.
        rounds = [[(WARM_PROMPT[:4], greedy)]]
        if model_id is None:
            rounds.append([(WARM_PROMPT, greedy), (WARM_PROMPT, SAMPLED), (WARM_PROMPT[:64], {})])
            rounds.append([(WARM_PROMPT[: 48 * n], greedy) for n in range(1, WARM_BATCH + 1)])
        # An adapter's weights are paged in by one token; under load each further one is a step
        # that everybody shares, and the alias waits for it.
        tokens = 4 if model_id is None else 1
        for batch in rounds:
            await asyncio.gather(*(self._generate(name, prompt, s, tokens) for prompt, s in batch))

    async def _generate(
        self, name: str, prompt: str, sampling: dict[str, Any], max_tokens: int
    ) -> None:
        request = CompletionRequest(model=name, prompt=prompt, max_tokens=max_tokens, **sampling)
        answer = await self.engine._oai_serving_completion.create_completion(request, None)
        if isinstance(answer, ErrorResponse):
            raise RuntimeError(f"{name} does not answer: {answer.error.message}")

    async def answer(
        self,
        route: str,
        payload: dict[str, Any],
        model_id: str | None,
        request_id: str,
        logprobs: bool = False,
    ) -> tuple[int, Any, Usage]:
        """Answer a request that is not streamed: (200, JSON bytes, usage) or (status, error…).

        `logprobs` fills the usage's mean log-probability.
        """
        usage = Usage()
        entered = time.monotonic()
        try:
            async with self._holding(model_id):
                observe(usage, logprobs=logprobs)
                # Without the load of a cold adapter, which more replicas would not shorten.
                begun = time.monotonic()
                response = await self._ask(route, payload, model_id, request_id)
                self._recent.add(time.monotonic() - begun)
                content = response.model_dump_json().encode()
                usage.replica_s = time.monotonic() - entered
                return 200, content, usage
        except (ApiError, RegistryError) as error:
            known = self._as_api_error(error, model_id)
            return known.status, known.as_dict(), usage

    async def stream(
        self, route: str, payload: dict[str, Any], model_id: str | None, request_id: str
    ) -> AsyncIterator[Any]:
        """Yield server-sent events as bytes, at last the Usage; or (status, error) ends them."""
        usage = Usage()
        try:
            async with self._holding(model_id):
                observe(usage)
                begun = time.monotonic()
                answer = await self._ask(route, payload, model_id, request_id)
                events = raising(answer, partial(self._refusal, payload, request_id))
                async with aclosing(gathered(events, interval_s=CHUNK_S)) as chunks:
                    async for chunk in chunks:
                        yield chunk.encode()
                self._recent.add(time.monotonic() - begun)
                yield usage
        except (ApiError, RegistryError) as error:
            known = self._as_api_error(error, model_id)
            yield known.status, known.as_dict()

    async def _ask(
        self, route: str, payload: dict[str, Any], model_id: str | None, request_id: str
    ) -> Any:
        check_fields(payload, FIELDS[route])
        payload["model"] = model_id or self._llm_config.model_id
        payload["request_id"] = request_id
        request = validated(route, payload)
        try:
            if route == "chat":
                response = await self.engine._oai_serving_chat.create_chat_completion(request, None)
            else:
                response = await self.engine._oai_serving_completion.create_completion(
                    request, None
                )
        except (VLLMClientError, ValueError, TypeError, OverflowError) as error:
            raise self._explain(str(error), getattr(error, "parameter", None), payload) from None
        except ApiError:
            raise
        except Exception:
            log.exception("request %s failed", request_id)
            raise internal(request_id) from None
        if isinstance(response, ErrorResponse):
            said = response.error
            raise self._refusal(payload, request_id, said.code, said.message, said.param)
        return response

    def _refusal(
        self, payload: dict[str, Any], request_id: str, code: int, message: str, param: str | None
    ) -> ApiError:
        """From the engine's own error, of an answer or within a stream."""
        if code < 500:
            return self._explain(message, param, payload)
        log.error("request %s failed: %s", request_id, message)
        return internal(request_id)

    def _as_api_error(self, error: Exception, model_id: str | None) -> ApiError:
        if isinstance(error, ApiError):
            return error
        log.error("%s is refused: %s", model_id, error)
        if isinstance(error, NoFreeSlot):
            return not_ready(f"The model {model_id!r} cannot be loaded at the moment: {error}")
        return refused_model(str(model_id), reason=_for_clients(str(error), self._registry))

    def _explain(self, message: str, param: str | None, payload: dict[str, Any]) -> ApiError:
        max_length = self.engine._oai_models.model_config.max_model_len
        tokenizer = self.engine._oai_models.renderer.tokenizer
        return explain_engine_error(
            message,
            param=param,
            max_length=max_length,
            length=lambda: prompt_length(payload, tokenizer),
        )


def _for_clients(message: str, registry: Registry) -> str:
    # A registry's errors say where it lies; that is for the log, not for a client.
    for location in (registry.store.root, registry.store.uri):
        message = message.replace(location, "the registry")
    return message
