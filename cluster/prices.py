"""The one table of prices, dated and with its source, and the look-up of API prices.

Prices change: every figure says where it is from and when. A price that nobody knows is `None`,
never zero.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TokenPrice:
    """Price of an API model, US dollars per million tokens."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    source: str
    """Where the price is from, and of when."""
    cached_usd_per_mtok: float | None = None
    """Of prompt tokens that the provider had kept; `None`: not known to be less than others'."""

    def request_usd(self, *, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of one request, US dollars."""
        return (
            prompt_tokens * self.input_usd_per_mtok + completion_tokens * self.output_usd_per_mtok
        ) / 1e6


_LISTS_2025 = "providers' price lists as written up in September 2025"

# Models that LiteLLM's table does not carry, by the name that LiteLLM calls them.
TOKEN_PRICES = {
    "anthropic/claude-sonnet-4-20250514": TokenPrice(3.00, 15.00, _LISTS_2025),
    "together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo": TokenPrice(0.20, 0.50, _LISTS_2025),
}

# On-demand rental of one accelerator, US dollars an hour, as of 2025.
ACCELERATOR_USD_PER_HOUR = {"A100": 1.99, "H100": 3.29}


def api_price(model: str) -> TokenPrice | None:
    """Price of an API model by LiteLLM's name for it; `None` when no table knows it.

    The table above comes first, then the one that LiteLLM was installed with. An entry of zero
    dollars (a model somebody hosts on their own machine) is a price that is not known.
    """
    if model in TOKEN_PRICES:
        return TOKEN_PRICES[model]
    entry = _litellm_entry(model)
    per_input = float(entry.get("input_cost_per_token") or 0.0)
    per_output = float(entry.get("output_cost_per_token") or 0.0)
    if not per_input and not per_output:
        return None
    # Some entries say more for a kept token, or zero.
    per_cached = min(per_input, float(entry.get("cache_read_input_token_cost") or per_input))
    version = importlib.metadata.version("litellm")
    return TokenPrice(
        per_input * 1e6,
        per_output * 1e6,
        f"price table of LiteLLM {version}",
        cached_usd_per_mtok=per_cached * 1e6,
    )


def _litellm_entry(model: str) -> dict[str, Any]:
    table = _litellm_table()
    if model in table:
        return table[model]
    provider, _, name = model.partition("/")
    entry = table.get(name, {})
    # `openai/my-model` must not find another provider's `my-model`.
    return entry if entry.get("litellm_provider") == provider else {}


@cache
def _litellm_table() -> dict[str, dict[str, Any]]:
    # Read as a file: importing LiteLLM takes seconds and asks the network for a newer table.
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "model_prices_and_context_window_backup.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))
