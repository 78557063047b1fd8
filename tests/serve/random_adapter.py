"""Write PEFT LoRA adapters with random weights for a base model: `model rank:seed:folder …`.

Random, not zero: each adapter answers differently from the base and from the others. Run as a
script so that a test process without torch stays without torch.
"""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main(model: str, specs: list[str]) -> None:
    for spec in specs:
        rank, seed, folder = spec.split(":", 2)
        torch.manual_seed(int(seed))
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        config = LoraConfig(
            r=int(rank),
            lora_alpha=2 * int(rank),
            target_modules="all-linear",
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        get_peft_model(base, config).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
