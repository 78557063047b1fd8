"""What the forward pass leaves for the backward pass, counted tensor by tensor, in bytes.

Two steps are counted: transformers' own with PEFT's adapters (`PlainTrunk`), and the fused CPU
step (`cpu_model._Block`). Attention holds no [tokens, tokens] matrix of its own in the former
(SDPA); on CPU there is one for all layers, the mask.
"""

from __future__ import annotations

from distill.train.plan.architecture import Architecture
from distill.train.plan.setting import Setting
from distill.train.plan.workload import MicroBatch

LOGIT_ROWS = 512
"""`head.CHUNK`, which cannot be had without torch: rows of logits that exist at once."""


def activation_bytes(setting: Setting, batch: MicroBatch) -> float:
    """Bytes that all blocks keep until the backward pass reaches them."""
    layers = setting.architecture.num_layers
    times = setting.sequences_per_record
    if setting.fused:
        return times * layers * _fused_layer(setting, batch)
    tokens = batch.tokens * times
    if setting.train.gradient_checkpointing:
        # Each block's input, and the last one's output, which the last norm keeps.
        kept = (layers + 1) * setting.architecture.hidden_size * setting.weight_bytes
        return tokens * (kept + plain_layer(setting)) + mask_bytes(setting, batch)
    return tokens * layers * plain_layer(setting) + mask_bytes(setting, batch)


def mask_bytes(setting: Setting, batch: MicroBatch) -> float:
    """Bytes of the mask that keeps packed records apart; a GPU has one a block of rows."""
    if setting.hardware.kind == "gpu":
        return 0
    return (batch.tokens * setting.sequences_per_record) ** 2 * setting.weight_bytes


def plain_layer(setting: Setting) -> float:
    """Bytes a token and block that autograd keeps of transformers' block with PEFT's adapters."""
    model, student, p = setting.architecture, setting.student, setting.weight_bytes
    d, wide = model.hidden_size, model.num_heads * model.head_dim
    narrow = model.num_kv_heads * model.head_dim
    # RMSNorm computes in float32: in bfloat16 it keeps a float32 copy of its input, in float32 the
    # input itself.
    norms = 2 * (d * 4 + 4)
    # Query and key after the rotation, value, and the context; with a mask of numbers, on CPU,
    # transformers copies keys and values for each head that shares them.
    shared = narrow if setting.hardware.kind == "gpu" else wide
    attention = (2 * wide + 2 * shared) * p + 4 * model.num_heads
    if model.qk_norm:
        attention += (wide + narrow) * 4
    # The gate before and after SiLU, and up.
    mlp = 3 * model.intermediate_size * p
    if model.num_experts:
        # In a frozen expert the product is not kept, its output is, to be weighted by the router.
        expert = 3 * model.intermediate_size + 2 * d
        mlp = model.experts_per_token * expert * p + 4 * 4 * model.num_experts
    return norms + attention + mlp + _for_trained(setting, model, student.dropout > 0)


def _for_trained(setting: Setting, model: Architecture, dropout: bool) -> float:
    """Inputs of what is trained, from which its gradient comes; o_proj's is the context."""
    student, p = setting.student, setting.weight_bytes
    targets = model.linears if setting.full else model.adapted(student.target_modules)
    names = {linear.name for linear in targets}
    kept = model.hidden_size * p * bool(names & {"q_proj", "k_proj", "v_proj"})
    kept += model.hidden_size * p * bool(names & {"gate_proj", "up_proj"})
    kept += model.intermediate_size * p * ("down_proj" in names)
    if setting.full:
        return kept + 2 * model.hidden_size * p  # the norms' weights need their input
    kept += len(targets) * student.rank * p  # A's output, which B keeps
    if dropout:
        kept += sum(x.inputs for x in targets) * (p + 1)  # each module's own input, and the mask
    if student.tuning == "dora":
        kept += 2 * sum(x.outputs for x in targets) * p  # both terms that the magnitude scales
    return kept


def _fused_layer(setting: Setting, batch: MicroBatch) -> float:
    """Bytes a block, as `_Block.forward` saves them."""
    model, p = setting.architecture, setting.weight_bytes
    wide, narrow = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    row = 2 * model.hidden_size + 2 * wide + 2 * narrow + 2 * model.intermediate_size
    row += 7 * setting.student.rank
    kept = batch.tokens * (p * row + 8)
    if setting.tiled:  # each query's log-sum-exp in float32
        return kept + 4 * batch.tokens * model.num_heads
    # The attention's probabilities: a row of each head sees its own record.
    return kept + p * batch.tokens * batch.width * model.num_heads


def working_bytes(setting: Setting, batch: MicroBatch) -> float:
    """Bytes of one block's backward pass that are gone after it."""
    model, p, times = setting.architecture, setting.weight_bytes, setting.sequences_per_record
    inner = model.intermediate_size * max(1, model.experts_per_token)
    tokens = batch.tokens * times
    # Gradients of gate, up and their product, and of the residual stream and its norm.
    needed = tokens * (3 * inner + 3 * model.hidden_size) * p
    if setting.tiled:  # gradients of keys and values in float32
        needed += tokens * 2 * model.num_kv_heads * model.head_dim * 4
    if setting.student.tuning == "qlora":
        # One weight at a time is turned back into the compute type.
        needed += max(linear.weights for linear in model.linears) * p
    if setting.student.tuning == "dora":
        needed += 2 * max(linear.weights for linear in model.linears) * p
    return needed


def loss_bytes(setting: Setting, batch: MicroBatch) -> float:
    """Bytes of logits and their gradient."""
    model, p = setting.architecture, setting.weight_bytes
    rows = batch.completion_rows * setting.sequences_per_record
    if setting.fused:
        some = min(rows, LOGIT_ROWS)
        return some * model.vocab_size * p + rows * model.hidden_size * 2 * p
    # Of a chunk: logits, log-probabilities in float32 and the gradient in float32; in bfloat16 also
    # a float32 copy of the logits, gone before the gradient comes. Of all rows: their gradient.
    some = min(rows, LOGIT_ROWS)
    width = 4 + 4 + (p if p == 2 else 0)
    others = 0 if setting.teacher is None else setting.teacher.vocab_size * 4
    return some * (model.vocab_size * width + others) + rows * model.hidden_size * p
