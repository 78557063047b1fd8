"""The Llama family's training step on CPU, written out by hand.

Same sums as `PlainTrunk` with transformers and PEFT below it (a test compares them), but:
query, key and value are one product, gate and up are one, so are their adapters' first halves;
norms, rotation, softmax, SwiGLU and loss are one pass each over memory; attention's backward is
four matrix products instead of PyTorch's flash kernel, which is slow on short sequences; only
activations that cannot be had again cheaply are kept. Rows are tokens without padding, and what
records have in common at their beginning is in there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.train import cpu_kernels as kernels
from distill.train.head import CHUNK
from distill.train.packed import PackedBatch, Segment

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FrozenBlock:
    """One decoder layer's frozen weights, the ones with a common input beside each other."""

    def __init__(self, layer: Any):
        """Join the weights; the layer's own become views of the joint ones, so memory stays."""
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = attention.o_proj.base_layer.weight.detach()
        self.gate_up = _join([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj.base_layer.weight.detach()
        self.norm1 = layer.input_layernorm.weight.detach()
        self.norm2 = layer.post_attention_layernorm.weight.detach()
        self.eps = float(layer.input_layernorm.variance_epsilon)
        self.head_width = int(attention.head_dim)
        self.attention_scale = float(attention.scaling)
        self.num_q = attention.q_proj.out_features // self.head_width
        self.num_kv = attention.k_proj.out_features // self.head_width
        self.tiled = kernels.has_tiled_attention(self.out.dtype, self.head_width)
        self.lora_scale = float(attention.q_proj.scaling["default"])
        self.modules = [getattr(attention, n) for n in ADAPTED[:4]]
        self.modules += [getattr(mlp, n) for n in ADAPTED[4:]]

    def heads(self, num_rows: int, *, like: torch.Tensor) -> Heads:
        """Return room for q, k and v of `num_rows` rows, head-major a segment."""
        kv = num_rows * self.num_kv * self.head_width
        q = like.new_empty(num_rows * self.num_q * self.head_width)
        return q, like.new_empty(kv), like.new_empty(kv)

    def adapters(self) -> list[torch.Tensor]:
        """The fourteen trainable matrices: A and B of each of `ADAPTED`."""
        return [
            w
            for m in self.modules
            for w in (m.lora_A["default"].weight, m.lora_B["default"].weight)
        ]

    def no_adapters(self) -> list[torch.Tensor]:
        """The same of rank 1 and all zero: the base model's own products."""
        return [
            w
            for m in self.modules
            for w in (
                m.base_layer.weight.new_zeros(1, m.in_features),
                m.base_layer.weight.new_zeros(m.out_features, 1),
            )
        ]


def _join(modules: list[Any]) -> torch.Tensor:
    joint = torch.cat([m.base_layer.weight.detach() for m in modules])
    start = 0
    for module in modules:
        weight = module.base_layer.weight
        weight.data = joint[start : start + len(weight)]
        start += len(weight)
    return joint


class _Block(torch.autograd.Function):
    """One decoder layer: hidden [M, D] to hidden [M, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        block: FrozenBlock,
        batch: PackedBatch,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd = adapters
        scale = block.lora_scale

        normed, r1 = kernels.rms_norm(x, block.norm1, block.eps)
        a_qkv, b_qkv = torch.cat([aq, ak, av]), torch.block_diag(bq, bk, bv) * scale
        qkv, t_qkv = _linear(normed, block.qkv, a_qkv, b_qkv)
        q, k, v = heads = block.heads(len(x), like=x)
        kernels.rotate_split(qkv, heads, segments_M_2=batch.bounds, cos=cos, sin=sin, back=False)
        if block.tiled:
            context, lse = kernels.attend(
                heads, batch.table, num_rows=len(x), width=block.head_width,
                scale=block.attention_scale,
            )  # fmt: skip
            weights = [lse]
        else:
            context, weights = _attend(heads, block, batch.segments, len(x))
        out, t_o = _linear(context, block.out, ao, bo * scale)
        middle = out.add_(x)

        normed, r2 = kernels.rms_norm(middle, block.norm2, block.eps)
        a_gu, b_gu = torch.cat([ag, au]), torch.block_diag(bg, bu) * scale
        gate_up, t_gu = _linear(normed, block.gate_up, a_gu, b_gu)
        activated = kernels.swiglu(gate_up)
        down, t_d = _linear(activated, block.down, ad, bd * scale)
        ctx.save_for_backward(
            x, r1, t_qkv, q, k, v, context, t_o, middle, r2, gate_up, t_gu, t_d, cos, sin,
            *adapters, *weights,
        )  # fmt: skip
        ctx.block, ctx.batch = block, batch
        return down.add_(middle)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        block, batch = ctx.block, ctx.batch
        x, r1, t_qkv, q, k, v, context, t_o, middle, r2, gate_up, t_gu, t_d, cos, sin = (
            ctx.saved_tensors[:15]
        )
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd = ctx.saved_tensors[15:29]
        weights = ctx.saved_tensors[29:]
        scale, rank = block.lora_scale, len(aq)

        # Feed-forward
        d_act, dt_d = _linear_backward(grad, block.down, ad, bd * scale)
        [db_d] = _b_gradients(grad, t_d, [bd], scale)
        d_gate_up = kernels.swiglu_backward(gate_up, d_act)  # d_act is the activation from here on
        da_d = dt_d.t() @ d_act
        a_gu, b_gu = torch.cat([ag, au]), torch.block_diag(bg, bu) * scale
        d_normed, dt_gu = _linear_backward(d_gate_up, block.gate_up, a_gu, b_gu)
        db_g, db_u = _b_gradients(d_gate_up, t_gu, [bg, bu], scale)
        normed, _ = kernels.rms_norm(middle, block.norm2, block.eps)
        da_gu = dt_gu.t() @ normed
        d_middle = kernels.rms_norm_backward(d_normed, middle, block.norm2, r2, grad)

        # Attention
        d_context, dt_o = _linear_backward(d_middle, block.out, ao, bo * scale)
        [db_o] = _b_gradients(d_middle, t_o, [bo], scale)
        da_o = dt_o.t() @ context
        if block.tiled:
            d_heads = kernels.attend_backward(
                d_context, (q, k, v), context, weights[0], batch.table, width=block.head_width,
                scale=block.attention_scale,
            )  # fmt: skip
        else:
            d_heads = _attend_backward(d_context, (q, k, v), weights, block, batch.segments)
        d_qkv = x.new_empty(len(x), len(block.qkv))
        kernels.rotate_split(d_qkv, d_heads, segments_M_2=batch.bounds, cos=cos, sin=sin, back=True)

        a_qkv, b_qkv = torch.cat([aq, ak, av]), torch.block_diag(bq, bk, bv) * scale
        needs_input = ctx.needs_input_grad[0]
        d_normed, dt_qkv = _linear_backward(d_qkv, block.qkv, a_qkv, b_qkv, needs_input=needs_input)
        db_q, db_k, db_v = _b_gradients(d_qkv, t_qkv, [bq, bk, bv], scale)
        normed, _ = kernels.rms_norm(x, block.norm1, block.eps)
        da_qkv = dt_qkv.t() @ normed
        dx = None
        if needs_input:
            dx = kernels.rms_norm_backward(d_normed, x, block.norm1, r1, d_middle)

        da_q, da_k, da_v = da_qkv.split(rank)
        da_g, da_u = da_gu.split(rank)
        return (
            dx, None, None, None, None,
            da_q, db_q, da_k, db_k, da_v, db_v, da_o, db_o,
            da_g, db_g, da_u, db_u, da_d, db_d,
        )  # fmt: skip


def _attend(
    heads: Heads, block: FrozenBlock, segments: list[Segment], num_rows: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the context rows [M, H·W] and each segment's probabilities [K, G·L, S]."""
    context = heads[0].new_empty(num_rows, block.num_q * block.head_width)
    weights = []
    for segment in segments:
        q, k, v = _grouped(heads, block, segment, num_rows)
        p = torch.bmm(q, k.transpose(1, 2).contiguous())
        kernels.causal_softmax(p.view(-1, segment.length, p.shape[2]), block.attention_scale)
        rows = _by_head(context, block, segment)
        rows.copy_(torch.bmm(p, v).view(rows.shape))
        weights.append(p)
    return context, weights


def _attend_backward(
    d_context: torch.Tensor,
    heads: Heads,
    weights: Sequence[torch.Tensor],
    block: FrozenBlock,
    segments: list[Segment],
) -> Heads:
    """Return the gradients of q, k and v, a prefix's summed over all that attend to it."""
    num_rows, width = len(d_context), block.head_width
    d_heads = block.heads(num_rows, like=d_context)
    handed_down: dict[tuple[int, int], torch.Tensor] = {}
    # From the last to the first: a prefix comes before everything that attends to it.
    for segment, p in zip(reversed(segments), reversed(weights), strict=True):
        q, k, v = _grouped(heads, block, segment, num_rows)
        d_out = _by_head(d_context, block, segment).reshape(q.shape)
        ds = torch.bmm(d_out, v.transpose(1, 2))
        by_query = (-1, segment.length, p.shape[2])
        kernels.causal_softmax_backward(p.view(by_query), ds.view(by_query), block.attention_scale)
        d_q = segment.heads(d_heads[0], num_rows, width)
        d_q.copy_(torch.bmm(ds, k).view(d_q.shape))
        # The wide operand stays as it lies: dsᵀ q took twice as long as qᵀ ds (docs/log.md).
        found = [
            torch.bmm(thin.transpose(1, 2).contiguous(), wide).transpose(1, 2)
            for thin, wide in ((q, ds), (d_out, p))
        ]
        for which, (flat, own) in enumerate(zip(d_heads[1:], found, strict=True)):
            if segment.prefix is not None:
                # In float32: many small shares are added up.
                place, cut = (segment.prefix.start, which), segment.prefix.length
                share = own[:, :cut].float()
                handed_down[place] = handed_down[place] + share if place in handed_down else share
                own = own[:, cut:]
            elif (segment.start, which) in handed_down:
                own = own + handed_down.pop((segment.start, which))
            segment.heads(flat, num_rows, width).copy_(own)
    return d_heads


def _grouped(heads: Heads, block: FrozenBlock, segment: Segment, num_rows: int) -> Heads:
    """Queries [K, G·L, W], the heads of a group behind each other; keys and values [K, S, W]."""
    q, *own = (segment.heads(flat, num_rows, block.head_width) for flat in heads)
    if segment.prefix is not None:
        shared = (segment.prefix.heads(flat, num_rows, block.head_width) for flat in heads[1:])
        own = [torch.cat(pair, dim=1) for pair in zip(shared, own, strict=True)]
    return q.view(block.num_kv, -1, block.head_width), own[0], own[1]


def _by_head(rows: torch.Tensor, block: FrozenBlock, segment: Segment) -> torch.Tensor:
    """View the segment's rows [L, H·W] as [H, L, W]."""
    mine = rows[segment.start : segment.start + segment.length]
    return mine.view(segment.length, -1, block.head_width).transpose(0, 1)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x Wᵀ + (x Aᵀ) Bᵀ and x Aᵀ."""
    t = x @ a.t()
    return torch.mm(x, weight.t()).addmm_(t, b.t()), t


def _linear_backward(
    grad: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    needs_input: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x and of x Aᵀ."""
    dt = grad @ b
    dx = torch.mm(grad, weight).addmm_(dt, a) if needs_input else grad
    return dx, dt


def _b_gradients(
    grad: torch.Tensor, t: torch.Tensor, blocks: list[torch.Tensor], scale: float
) -> list[torch.Tensor]:
    """Return the gradient of each block of B from its own columns of `grad` and `t`."""
    parts, row, column = [], 0, 0
    for block in blocks:
        height, width = block.shape
        mine, theirs = t[:, column : column + width], grad[:, row : row + height]
        # This way round the product reads `grad` row by row: 1.4 times as fast as gradᵀ t.
        parts.append((mine.t() @ theirs).t() * scale)
        row, column = row + height, column + width
    return parts


class _HeadLosses(torch.autograd.Function):
    """Each row's loss [N] of rows [N, D] under the frozen output head, some logits at a time."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, head_V_D: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(rows), dtype=torch.float32)
        gradient = torch.empty_like(rows) if wanted else None
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            logits = rows[part] @ head_V_D.t()
            losses[part] = kernels.cross_entropy(logits, targets[part], with_gradient=wanted)
            if gradient is not None:
                torch.mm(logits, head_V_D, out=gradient[part])
        ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = ctx.gradient.float().mul_(grad[:, None])
        return scaled.to(ctx.gradient.dtype), None, None


class FastTrunk:
    """`PlainTrunk` for Llama on CPU: the same parameters, the layers written out by hand."""

    batch = PackedBatch

    def __init__(self, model: Any):
        """`model` must pass `why_not`."""
        causal = model.get_base_model()
        self.head = causal.get_output_embeddings()
        self._inner = causal.base_model
        self._blocks = [FrozenBlock(layer) for layer in self._inner.layers]

    def rows(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden rows [N, D], final norm included, of the batch's positions."""
        return self._rows(batch, adapted=True)

    @torch.no_grad()
    def reference_rows(self, batch: PackedBatch) -> torch.Tensor:
        """Return the same with the adapter off."""
        return self._rows(batch, adapted=False)

    def shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits: Llama neither scales nor caps them."""
        return logits

    def next_token_losses(self, rows_N_D: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """−log p of each row's target, [N], nats."""
        losses: torch.Tensor = _HeadLosses.apply(rows_N_D, self.head.weight, targets_N)
        return losses

    def _rows(self, batch: PackedBatch, *, adapted: bool) -> torch.Tensor:
        hidden = self._inner.embed_tokens(batch.tokens)
        # In float32: the tables are small, and rounding them would move every rotation.
        probe = hidden[None, :, :1].float()
        cos, sin = (x[0] for x in self._inner.rotary_emb(probe, batch.places[None]))
        half = cos.shape[-1] // 2
        cos, sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        for block in self._blocks:
            adapters = block.adapters() if adapted else block.no_adapters()
            hidden = _Block.apply(hidden, block, batch, cos, sin, *adapters)
        rows: torch.Tensor = self._inner.norm(hidden[batch.positions])
        return rows


def why_not(model: Any, *, zero_stage: int) -> str:
    """Why the fast step does not fit this student, or "" when it does."""
    if not hasattr(model, "peft_config"):
        return "all weights are trained"
    causal = model.get_base_model()
    if type(causal).__name__ != "LlamaForCausalLM":
        return f"{type(causal).__name__} is not LlamaForCausalLM"
    dtype = next(causal.parameters()).dtype
    if dtype not in kernels.DEFINES:
        return f"there are no kernels for {dtype}"
    if causal.base_model.gradient_checkpointing:
        return "gradient_checkpointing is on"
    if zero_stage == 3:
        return "ZeRO 3 gathers weights by the modules' own forward"
    lora = model.peft_config["default"]
    if lora.lora_dropout or lora.use_dora:
        return "the adapter has dropout or a magnitude of its own"
    config = causal.config
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return "the layers have biases or another activation"
    named = dict(causal.base_model.layers[0].named_modules())
    if any(
        not hasattr(named.get(f"self_attn.{n}") or named.get(f"mlp.{n}"), "lora_A") for n in ADAPTED
    ):
        return "not every linear layer has an adapter"
    if type(causal.base_model.layers[0].mlp.up_proj.base_layer) is not nn.Linear:
        return "the base is quantised"
    if kernels.load(dtype) is None:
        if kernels.compiler() is None:
            return "no C++ compiler was found (install g++)"
        return "the kernels of cpu_kernels.cpp did not compile"
    return ""
