"""A base model that lies in a folder: nothing to download, so no worker is started to do it."""

from __future__ import annotations

from ray.llm._internal.common.callbacks.base import CallbackBase


class LocalFolder(CallbackBase):
    """Skip Ray Serve LLM's node initialisation.

    It would start a process a node, and import vLLM there, to find out that a folder is a folder.
    """

    async def on_before_node_init(self) -> None:
        """Called by the engine before it initialises nodes."""
        self.ctx.run_init_node = False
