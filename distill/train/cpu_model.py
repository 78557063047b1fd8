"""The Llama family's training step on CPU in bfloat16, written out by hand.

Same sums as `CompletionLoss` with transformers and PEFT below it (a test compares them), but:
query, key and value are one product, gate and up are one, so are their adapters' first halves;
norms, rotation, softmax, SwiGLU and loss are one pass each over memory; attention's backward is
four matrix products instead of PyTorch's flash kernel, which is slow on short sequences; only
activations that cannot be had again cheaply are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distill.train import cpu_kernels as kernels

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LOGIT_ROWS = 512
"""Rows of logits that exist at once: 512 × 49,152 in bfloat16 are 50 MB."""


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
        self.lora_scale = float(attention.q_proj.scaling["default"])
        self.modules = [getattr(attention, n) for n in ADAPTED[:4]]
        self.modules += [getattr(mlp, n) for n in ADAPTED[4:]]

    def adapters(self) -> list[torch.Tensor]:
        """The fourteen trainable matrices: A and B of each of `ADAPTED`."""
        return [
            w
            for m in self.modules
            for w in (m.lora_A["default"].weight, m.lora_B["default"].weight)
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
    """One decoder layer: hidden [B, T, D] to hidden [B, T, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_B_T_D: torch.Tensor,
        block: FrozenBlock,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        shape = hidden_B_T_D.shape
        x = hidden_B_T_D.reshape(-1, shape[-1])
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd = adapters
        scale = block.lora_scale

        normed, r1 = kernels.rms_norm(x, block.norm1, block.eps)
        a_qkv, b_qkv = torch.cat([aq, ak, av]), torch.block_diag(bq, bk, bv) * scale
        qkv, t_qkv = _linear(normed, block.qkv, a_qkv, b_qkv)
        q, k, v = _heads(qkv, block, shape)
        kernels.rotate_split(qkv, (q, k, v), cos=cos, sin=sin, back=False)
        grouped = (shape[0] * block.num_kv, -1, block.head_width)
        scores = torch.bmm(q.view(grouped), k.view(grouped).transpose(1, 2))
        p = kernels.causal_softmax(_square(scores, shape[1]), block.attention_scale)
        context = torch.bmm(p.view_as(scores), v.view(grouped)).view_as(q)
        context = context.transpose(1, 2).reshape(len(x), -1)
        out, t_o = _linear(context, block.out, ao, bo * scale)
        middle = out.add_(x)

        normed, r2 = kernels.rms_norm(middle, block.norm2, block.eps)
        a_gu, b_gu = torch.cat([ag, au]), torch.block_diag(bg, bu) * scale
        gate_up, t_gu = _linear(normed, block.gate_up, a_gu, b_gu)
        activated = kernels.swiglu(gate_up)
        down, t_d = _linear(activated, block.down, ad, bd * scale)
        ctx.save_for_backward(
            x, r1, t_qkv, q, k, v, p, context, t_o, middle, r2, gate_up, t_gu, t_d, cos, sin,
            *adapters,
        )  # fmt: skip
        ctx.block, ctx.shape = block, shape
        return down.add_(middle).view(shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        block, shape = ctx.block, ctx.shape
        x, r1, t_qkv, q, k, v, p, context, t_o, middle, r2, gate_up, t_gu, t_d, cos, sin = (
            ctx.saved_tensors[:16]
        )
        aq, bq, ak, bk, av, bv, ao, bo, ag, bg, au, bu, ad, bd = ctx.saved_tensors[16:]
        scale, rank = block.lora_scale, len(aq)
        grad = grad.reshape(len(x), -1)

        # Feed-forward
        d_act, dt_d = _linear_backward(grad, block.down, ad, bd * scale)
        [db_d] = _b_gradients(grad, t_d, [bd], scale)
        # Saved tensors stay as they are: a graph kept for a second backward must not change.
        d_gate_up = gate_up.clone()
        kernels.swiglu_backward(d_gate_up, d_act)
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
        grouped = (shape[0] * block.num_kv, -1, block.head_width)
        d_heads = d_context.view(shape[0], shape[1], -1, block.head_width).transpose(1, 2)
        d_out = d_heads.reshape(grouped)
        qg, kg, vg = q.view(grouped), k.view(grouped), v.view(grouped)
        pg = p.view(len(qg), -1, shape[1])
        dv = torch.bmm(pg.transpose(1, 2), d_out)
        dp = torch.bmm(d_out, vg.transpose(1, 2))
        ds = kernels.causal_softmax_backward(p, dp.view_as(p), block.attention_scale).view_as(pg)
        dq, dk = torch.bmm(ds, kg), torch.bmm(ds.transpose(1, 2), qg)
        d_qkv = x.new_empty(len(x), len(block.qkv))
        parts = (dq.view_as(q), dk.view_as(k), dv.view_as(v))
        kernels.rotate_split(d_qkv, parts, cos=cos, sin=sin, back=True)

        a_qkv, b_qkv = torch.cat([aq, ak, av]), torch.block_diag(bq, bk, bv) * scale
        needs_input = ctx.needs_input_grad[0]
        d_normed, dt_qkv = _linear_backward(d_qkv, block.qkv, a_qkv, b_qkv, needs_input=needs_input)
        db_q, db_k, db_v = _b_gradients(d_qkv, t_qkv, [bq, bk, bv], scale)
        normed, _ = kernels.rms_norm(x, block.norm1, block.eps)
        da_qkv = dt_qkv.t() @ normed
        dx = None
        if needs_input:
            dx = kernels.rms_norm_backward(d_normed, x, block.norm1, r1, d_middle).view(shape)

        da_q, da_k, da_v = da_qkv.split(rank)
        da_g, da_u = da_gu.split(rank)
        return (
            dx, None, None, None,
            da_q, db_q, da_k, db_k, da_v, db_v, da_o, db_o,
            da_g, db_g, da_u, db_u, da_d, db_d,
        )  # fmt: skip


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


def _heads(
    qkv: torch.Tensor, block: FrozenBlock, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = qkv.new_empty(shape[0], block.num_q, shape[1], block.head_width)
    k = qkv.new_empty(shape[0], block.num_kv, shape[1], block.head_width)
    return q, k, torch.empty_like(k)


def _square(scores: torch.Tensor, time: int) -> torch.Tensor:
    """View [B·K, G·T, T] as [B·H, T, T]: the query heads of a group lie behind each other."""
    return scores.view(-1, time, time)


class _HeadLoss(torch.autograd.Function):
    """Summed loss of rows [N, D] under the output head, some rows of logits at a time."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, head_V_D: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(rows) if wanted else None
        for start in range(0, len(rows), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            logits = rows[part] @ head_V_D.t()
            losses = kernels.cross_entropy(logits, targets[part], with_gradient=wanted)
            total += losses.sum(dtype=torch.float64)
            if gradient is not None:
                torch.mm(logits, head_V_D, out=gradient[part])
        ctx.gradient = gradient
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (ctx.gradient.float() * grad).to(ctx.gradient.dtype), None, None


class FastCompletionLoss(nn.Module):
    """`CompletionLoss` for Llama on CPU; same parameters under the same names."""

    def __init__(self, model: Any):
        """`model` must pass `why_not`."""
        super().__init__()
        self.model = model
        inner = model.get_base_model().base_model
        self.blocks = [FrozenBlock(layer) for layer in inner.layers]

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over `targets` [N] of −log p, a float32 scalar."""
        causal = self.model.get_base_model()
        inner = causal.base_model
        hidden = inner.embed_tokens(tokens)
        places = torch.arange(tokens.shape[1])[None]
        # In float32: the tables are small, and rounding them would move every rotation.
        cos, sin = (x[0] for x in inner.rotary_emb(hidden[:, :, :1].float(), places))
        half = cos.shape[-1] // 2
        cos, sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        for block in self.blocks:
            hidden = _Block.apply(hidden, block, cos, sin, *block.adapters())
        rows = inner.norm(hidden.reshape(-1, hidden.shape[-1])[positions])
        return _HeadLoss.apply(rows, causal.get_output_embeddings().weight, targets)


def why_not(model: Any, *, zero_stage: int) -> str:
    """Why the fast step does not fit this student, or "" when it does."""
    causal = model.get_base_model()
    if type(causal).__name__ != "LlamaForCausalLM":
        return f"{type(causal).__name__} is not LlamaForCausalLM"
    if next(causal.parameters()).dtype != torch.bfloat16:
        return "precision is not bf16"
    if causal.base_model.gradient_checkpointing:
        return "gradient_checkpointing is on"
    if zero_stage == 3:
        return "ZeRO 3 gathers weights by the modules' own forward"
    lora = model.peft_config["default"]
    if lora.lora_dropout or lora.use_dora or lora.use_rslora:
        return "the adapter has dropout or is no plain LoRA"
    config = causal.config
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return "the layers have biases or another activation"
    named = dict(causal.base_model.layers[0].named_modules())
    if any(
        not hasattr(named.get(f"self_attn.{n}") or named.get(f"mlp.{n}"), "lora_A") for n in ADAPTED
    ):
        return "not every linear layer has an adapter"
    if kernels.library() is None:
        return "no C++ compiler was found (install g++)"
    return ""
