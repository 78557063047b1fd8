"""Random adapters to serve, and whose words an answer has: by the log-probabilities PEFT gives.

Random adapters stay close to their base, so two of them often say the same, and where two tokens
are nearly equally likely one of them says now this, now that. How likely its next token was tells
them apart all the same: every version has its own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.models import model_digest
from cluster.registry import AdapterManifest, Registry
from jobs.bench.report import Case, at_least, at_most, for_comparison
from jobs.bench.served import Sample

TELLING = {"logprobs": True, "top_logprobs": 20}
"""What a request asks for so that its answer can be told from another version's."""
SPREAD = 0.05
"""Of the entries of B: the student answers otherwise than the base, and still in words."""


@dataclass
class Voices:
    """What each version says next to one request, by transformers and PEFT."""

    ids: dict[str, int]
    """Tokens as a server spells them."""
    logprobs: dict[str, np.ndarray] = field(default_factory=dict)
    """By version, `name@v1`: float32 [V], nats."""

    def distances(self, said: dict[str, float]) -> dict[str, float]:
        """Return the mean |difference| to each version over the tokens of an answer, nats."""
        known = {self.ids[token]: value for token, value in said.items() if token in self.ids}
        at, values = np.array(list(known)), np.array(list(known.values()))
        return {
            version: float(np.abs(of[at] - values).mean()) for version, of in self.logprobs.items()
        }


def publish_random(
    registry: Registry,
    names: Sequence[str],
    model: Path,
    folder: Path,
    *,
    count: int,
    messages: list[dict[str, str]],
) -> Voices:
    """Publish `count` versions a name, rank 8 with non-zero B on all linear layers, the first live.

    Returns what each says next to `messages`.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    spelled = ((tokenizer.decode([i]), i) for i in reversed(range(len(tokenizer))))
    voices = Voices(ids=dict(spelled))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapted = get_peft_model(base, config)
    digest = model_digest(model)
    for name in names:
        for number in range(1, count + 1):
            version = f"{name}@v{number}"
            torch.manual_seed(zlib.crc32(version.encode()))
            for parameter_name, weight in adapted.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(weight, std=SPREAD)
            with torch.inference_mode():
                last = adapted(**prompt).logits[0, -1]
            voices.logprobs[version] = last.log_softmax(-1).numpy()
            place = folder / f"{name}-{number}"
            adapted.save_pretrained(place)
            manifest = AdapterManifest(
                name=name, base_model=model.name, base_digest=digest, rank=8, alpha=16.0,
                target_modules=sorted(config.target_modules or []), task="bench",
                task_digest="none", dataset_digest="none", teacher="none", train={}, gates=[],
            )  # fmt: skip
            registry.publish(place, manifest)
        registry.promote(name, 1)
    return voices


def mixed_up(samples: Sequence[Sample], voices: Voices) -> list[Case]:
    """Compare answers with what PEFT says of the version in their header, and of the others."""
    told = [(sample, voices.distances(sample.said)) for sample in samples if sample.said]
    wrong = sum(min(found, key=found.__getitem__) != sample.served_by for sample, found in told)
    own = max((found.get(sample.served_by, math.inf) for sample, found in told), default=math.inf)
    others = min(
        (
            distance
            for sample, found in told
            for version, distance in found.items()
            if version != sample.served_by
        ),
        default=0.0,
    )
    untold = len(samples) - len(told)
    return [
        for_comparison("log-probabilities from their version's, at most", own, unit="nats"),
        for_comparison("from another version's, at least", others, unit="nats"),
        at_most("answers that are another version's", wrong, unit="answers", target=0),
        at_least("answers compared", len(told), unit="answers", target=1),
        at_most("answers without log-probabilities", untold, unit="answers", target=0),
    ]


def telling(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request so that its answer can be told from another version's."""
    return request | TELLING
