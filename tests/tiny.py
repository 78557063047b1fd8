"""A 2-layer random Llama with a real (byte-level BPE) tokenizer and a ChatML template.

Small enough that a test trains and serves it in seconds; the code under test cannot tell it from
a large one. Run as a script so that a test process without torch stays without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Bank: 2025-03-14 ACME Ltd USD 1,204.50; ERP: 2025-03-12 ACME Ltd USD 1,204.50",
    '{"classification": "TIMING_DIFFERENCE", "confidence": 0.95, "reason": "two days apart"}',
    "The quick brown fox jumps over the lazy dog. 0123456789 positive negative neutral",
    "system user assistant You reconcile bank lines with ERP lines. Answer in JSON.",
]


def make(folder: Path, *, seed: int = 0, vocab_size: int = 512) -> Path:
    """Write the model folder and return it: hidden 128, 4 heads of 32, 2 key-value heads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            eos_token_id=tokenizer.token_to_id("<|im_end|>"),
            bos_token_id=tokenizer.token_to_id("<|im_start|>"),
            pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
