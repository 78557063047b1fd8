"""A teacher's top-k log-probabilities at completion positions; logits never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cluster.errors import StageError
from distill.train.encode import Encoded
from distill.train.logprobs import TopK
from distill.train.packed import PaddedBatch

CHUNK_BYTES = 256 * 2**20
"""Float32 logits that exist at once; about three times as much is in use with their copies."""
TOKENS_PER_BATCH = 4_096
"""Tokens of a forward pass, padding included."""


class TeacherScorer:
    """A causal language model that says how likely it finds each record's completion tokens."""

    def __init__(
        self,
        model: str,
        *,
        device: torch.device,
        top_k: int,
        temperature: float,
        vocabulary_size: int,
    ):
        """Load `model`, a folder or hub name: bfloat16 on a GPU, its own type on CPU."""
        from transformers import AutoModelForCausalLM

        self.causal: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype="auto" if device.type == "cpu" else torch.bfloat16,
            attn_implementation="sdpa",
        )
        self.causal.to(device).eval()
        self.device = device
        self.top_k = top_k
        self.temperature = temperature
        self.vocabulary_size = vocabulary_size
        self._head_is_plain = self._compare_head()

    @torch.inference_mode()
    def __call__(self, records: Sequence[Encoded]) -> list[TopK]:
        """Score records, best of like length; StageError names those with logits that are NaN."""
        scored: list[TopK] = []
        for batch in batches(records):
            scored += self._score(batch)
        broken = [
            record.example_id
            for record, rows in zip(records, scored, strict=True)
            if not np.isfinite(rows.logprobs[:, 0]).all() or np.isnan(rows.tail).any()
        ]
        if broken:
            raise StageError(
                f"the teacher's logits are no numbers for record {', '.join(broken[:20])}; look at "
                "these records, or load the teacher in the type it was trained in"
            )
        return scored

    def _score(self, records: Sequence[Encoded]) -> list[TopK]:
        if not self._head_is_plain:
            return [self._top_k([self._own_logits(record)]) for record in records]
        batch = PaddedBatch(records, pad_token=0, device=self.device)
        hidden = self.causal.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        chosen_N_D = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
        head = self.causal.get_output_embeddings()
        step = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
        rows = self._top_k(head(part) for part in chosen_N_D.split(step))
        ends = np.cumsum([record.num_completion for record in records])[:-1]
        return [
            TopK(*parts)
            for parts in zip(
                *(np.split(x, ends) for x in (rows.ids, rows.logprobs, rows.tail)), strict=True
            )
        ]

    def _top_k(self, chunks: Iterator[torch.Tensor] | Sequence[torch.Tensor]) -> TopK:
        parts = [
            top_k(logits[:, : self.vocabulary_size], top_k=self.top_k, temperature=self.temperature)
            for logits in chunks
        ]
        ids, logprobs, tail = (
            torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
        )
        return TopK(ids.astype(np.int32), logprobs, tail)

    def _own_logits(self, record: Encoded) -> torch.Tensor:
        """Logits [n, vocabulary] of one record by the model's whole forward."""
        places = torch.arange(record.num_prompt - 1, len(record.tokens) - 1, device=self.device)
        tokens = torch.tensor([record.tokens], device=self.device)
        return self.causal(input_ids=tokens, use_cache=False, logits_to_keep=places).logits[0]

    @torch.inference_mode()
    def _compare_head(self) -> bool:
        """Whether logits are the output head's alone.

        Some models cap or scale what the head gives (Gemma 2, Granite, Cohere): theirs come from
        the whole forward, one record at a time.
        """
        probe = torch.arange(8, device=self.device)[None] % self.vocabulary_size
        hidden = self.causal.base_model(input_ids=probe, use_cache=False).last_hidden_state
        plain = self.causal.get_output_embeddings()(hidden)
        own = self.causal(input_ids=probe, use_cache=False).logits
        return torch.equal(plain.float(), own.float())


def top_k(
    logits_N_V: torch.Tensor, *, top_k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids [N, k] (most likely first), their log-probabilities [N, k] and the tail's [N].

    All of softmax(logits / temperature) in float32. The tail is the logsumexp of what is left, not
    log(1 − Σ p), which float32 rounds to nothing for a teacher that is sure.
    """
    scaled = logits_N_V.float() / temperature
    total = scaled.logsumexp(-1, keepdim=True)
    best = scaled.topk(top_k, dim=-1)
    rest = scaled.scatter_(-1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
    return best.indices, best.values - total, (rest - total)[:, 0]


def batches(records: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Cut into batches of neighbours, at most TOKENS_PER_BATCH padded tokens or one record each."""
    start, widest = 0, 0
    for i, record in enumerate(records):
        widest = max(widest, len(record.tokens))
        if i > start and widest * (i + 1 - start) > TOKENS_PER_BATCH:
            yield records[start:i]
            start, widest = i, len(record.tokens)
    if start < len(records):
        yield records[start:]
