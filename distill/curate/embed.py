"""Texts to vectors. The seam is one callable: texts in, float32 rows of length one out.

The default needs no model; an embedding model is read from a folder, in the layout of
sentence-transformers, with transformers alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from distill.curate.config import EmbeddingsConfig

Embed = Callable[[Sequence[str]], np.ndarray]
"""From N texts to float32 (N, D); rows have length one, or zero for a text that says nothing."""

POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
SEED = 0


def build_embed(config: EmbeddingsConfig) -> Embed:
    """Return the embedding that is configured; ConfigError for a folder that cannot be one."""
    if config.model:
        return model_embed(config.model, batch_size=config.batch_size)
    return partial(tfidf_embed, dimensions=config.dimensions)


def tfidf_embed(texts: Sequence[str], *, dimensions: int = 64) -> np.ndarray:
    """Embed by TF-IDF and truncated SVD (latent semantic analysis, Deerwester et al. 1990).

    The vectors are fitted to these texts: they compare them with each other and with no others.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word
        return np.zeros((len(texts), dimensions), dtype=np.float32)
    size = min(dimensions, weights.shape[1] - 1, weights.shape[0] - 1)
    if size < 2:
        return normalized(weights.toarray())
    with np.errstate(invalid="ignore"):  # texts that are all the same have no variance to share
        vectors: np.ndarray = TruncatedSVD(size, random_state=SEED).fit_transform(weights)
    return normalized(vectors)


def model_embed(folder: str, *, batch_size: int = 32) -> Embed:
    """Return the embedding of a model folder; the model is loaded once, here.

    Pooling is read from `modules.json` and the pooling module's `config.json`; without them it is
    the mean over the tokens that are no padding.
    """
    pooling, max_length = check_model_folder(folder)
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = Path(folder).expanduser()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    model = AutoModel.from_pretrained(path)
    model.eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = [np.empty((0, model.config.hidden_size), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                batch = tokenizer(
                    list(texts[start : start + batch_size]),
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                    return_tensors="pt",
                )
                states_B_L_D = model(**batch).last_hidden_state
                pooled_B_D = _pooled(states_B_L_D, batch["attention_mask"], pooling)
                rows.append(pooled_B_D.float().numpy())
        return normalized(np.concatenate(rows))

    return embed


def check_model_folder(folder: str) -> tuple[str, int]:
    """Return pooling and longest input of a model folder; ConfigError if it cannot be used."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"curate.embeddings.model {folder!r}: there is no {path}/config.json. Give the folder "
            "of an embedding model, or leave it empty for TF-IDF."
        )
    return _pooling(path), _max_length(path)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length one; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _pooled(states_B_L_D: Any, mask_B_L: Any, pooling: str) -> Any:
    if pooling == "first":
        return states_B_L_D[:, 0]
    if pooling == "last":
        last_B = mask_B_L.sum(dim=1) - 1
        return states_B_L_D[range(len(last_B)), last_B]
    weights_B_L_1 = mask_B_L.unsqueeze(-1).to(states_B_L_D.dtype)
    return (states_B_L_D * weights_B_L_1).sum(dim=1) / weights_B_L_1.sum(dim=1).clamp(min=1)


def _pooling(path: Path) -> str:
    if not (path / "modules.json").is_file():
        return "mean"
    pooling = "mean"
    for module in json.loads((path / "modules.json").read_text(encoding="utf-8")):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            settings = json.loads((path / module["path"] / "config.json").read_text("utf-8"))
            modes = [name for name, on in settings.items() if name.startswith("pooling_") and on]
            if len(modes) != 1 or modes[0] not in POOLING:
                raise ConfigError(
                    f"curate.embeddings.model: {path}/{module['path']} pools by {modes}; "
                    f"one of {', '.join(POOLING)} is understood."
                )
            pooling = POOLING[modes[0]]
        elif kind not in ("Transformer", "Normalize"):
            raise ConfigError(
                f"curate.embeddings.model: {path} has a module {kind!r}; Transformer, Pooling and "
                "Normalize are understood. Choose a model without it."
            )
    return pooling


def _max_length(path: Path) -> int:
    file = path / "sentence_bert_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    limit = json.loads((path / "config.json").read_text(encoding="utf-8")).get(
        "max_position_embeddings", 512
    )
    return int(settings.get("max_seq_length") or min(512, limit))
