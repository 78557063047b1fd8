"""Multi-LoRA on CPU at about the base model's speed, as a vLLM general plugin.

vLLM's own CPU operators gather the adapter's matrices for every token, which is slow at decode and
costs gigabytes at prefill, and they answer base-model rows (slot -1) with the adapter in the last
slot. This package puts `serve.cpu_lora.punica.DensePunicaWrapper` in their place. vLLM finds it by
its entry point `vllm.general_plugins`; `VLLM_PLUGINS` (vLLM's own setting) leaves it out.
"""

from __future__ import annotations

import logging

CHECKED_VLLM_VERSIONS = ("0.29.0",)
"""Releases whose operator interface and slot layout the wrapper was read and tested against."""

STOCK_WRAPPER = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
WRAPPER = "serve.cpu_lora.punica.DensePunicaWrapper"

# Under vLLM's root, so that its handlers and its format show the line.
logger = logging.getLogger("vllm.distillery.cpu_lora")


def register() -> None:
    """Make vLLM use the dense wrapper wherever the platform would pick its stock CPU wrapper.

    Called by vLLM in each of its processes, possibly more than once. On any other platform, and
    with a vLLM that was not checked, it changes nothing and logs one line.
    """
    from vllm import __version__ as vllm_version
    from vllm.platforms import current_platform

    picked = current_platform.get_punica_wrapper()
    if picked == WRAPPER:
        return
    if picked != STOCK_WRAPPER:
        logger.info("CPU LoRA operators not used: this platform picks %s.", picked)
        return
    if vllm_version.partition("+")[0] not in CHECKED_VLLM_VERSIONS:
        logger.warning(
            "CPU LoRA operators not used: vLLM is %s, checked are %s. Its own operators answer; "
            "keep one adapter slot more than adapters, or base-model requests go wrong.",
            vllm_version,
            ", ".join(CHECKED_VLLM_VERSIONS),
        )
        return
    type(current_platform).get_punica_wrapper = classmethod(lambda cls: WRAPPER)
