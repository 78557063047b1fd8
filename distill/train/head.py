"""From hidden rows to one loss a row, without ever holding all logits.

A row's loss depends on that row alone, so its gradient can be taken at once, chunk by chunk, while
the chunk's logits exist, and scaled by whatever comes from above later: N × V logits become
`CHUNK` × V. For 4,096 rows of a vocabulary of 49,152 in float32 that is 100 MB instead of 800 MB,
and the logits' gradient the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Rows whose logits exist at once."""

LossOfRows = Callable[[torch.Tensor, slice], torch.Tensor]
"""(float32 logits [n, V], which of the N rows they are) -> losses [n]."""


def row_losses(rows_N_D: torch.Tensor, head: nn.Module, loss_of: LossOfRows) -> torch.Tensor:
    """Return each row's loss [N], float32, of the logits that `head` gives it.

    A frozen head's logits are computed once. One that learns is run again in the backward pass,
    since the gradient of its weight needs what comes from above. Under ZeRO 3 a frozen weight is
    gathered for the call.
    """
    if any(p.requires_grad for p in head.parameters()):
        return _checkpointed(rows_N_D, head, loss_of)
    with gathered(head):
        losses: torch.Tensor = _RowLosses.apply(rows_N_D, head, loss_of)
    return losses


def logits_of(rows: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Float32 logits of a few rows; past the module's hooks, so its weight must be gathered."""
    return nn.functional.linear(rows, head.weight, getattr(head, "bias", None)).float()


class _RowLosses(torch.autograd.Function):
    """Losses forward; the rows' own gradients are taken on the way, backward only scales them."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, head: nn.Module, loss_of: LossOfRows) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        gradient = torch.empty_like(rows) if wanted else None
        for start in range(0, len(rows), CHUNK):
            part = slice(start, min(start + CHUNK, len(rows)))
            with torch.set_grad_enabled(wanted):
                mine = rows[part].detach().requires_grad_(wanted)
                of = loss_of(logits_of(mine, head), part)
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(of.sum(), mine)
            losses[part] = of.detach()
        ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (ctx.gradient * grad[:, None]).to(ctx.gradient.dtype), None, None


def _checkpointed(rows: torch.Tensor, head: nn.Module, loss_of: LossOfRows) -> torch.Tensor:
    def chunk(mine: torch.Tensor, part: slice) -> torch.Tensor:
        return loss_of(head(mine).float(), part)

    parts = [slice(i, min(i + CHUNK, len(rows))) for i in range(0, len(rows), CHUNK)]
    losses = [checkpoint(chunk, rows[part], part, use_reentrant=False) for part in parts]
    # A batch without rows still needs a graph: its backward pass is a step of DeepSpeed's too.
    return torch.cat(losses) if losses else rows.float().sum(dim=-1)


def gathered(head: nn.Module) -> AbstractContextManager[Any]:
    """The head's whole weight while the block runs: under ZeRO 3 a worker has a share of it."""
    weights = list(head.parameters())
    if not any(hasattr(w, "ds_id") for w in weights):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(weights)
    return context
