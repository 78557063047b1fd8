"""The ranks that vLLM makes room for, the same for answering held-out prompts and for serving."""

from __future__ import annotations

# vLLM accepts these as max_lora_rank only (vllm.config.lora.MaxLoRARanks).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
LARGEST = RANKS[-1]


def engine_rank(rank: int) -> int:
    """Return the `max_lora_rank` of an engine that holds adapters of up to `rank`.

    `rank` is at most `LARGEST`, which the configuration and whoever reads an adapter see to.
    """
    return next(allowed for allowed in RANKS if allowed >= rank)
