from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from cluster.errors import ConfigError, DataError
from distill.train.encode import check_template, encode_prompt, encode_records

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Answer in JSON."},
    {"role": "user", "content": "2 + 2?"},
]


class CharTokenizer:
    """A real byte-level tokenizer of single characters, with a chat template of its own."""

    def __init__(self, template: str | None = CHATML):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {char: i for i, char in enumerate(alphabet)}
        self.inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        self.chat_template = template
        self.eos_token = "<|im_end|>"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        assert not tokenize
        template = ImmutableSandboxedEnvironment().from_string(self.chat_template or "")
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.inner.encode(t, add_special_tokens=False).ids for t in texts]}

    def text(self, ids: list[int]) -> str:
        return "".join(self.inner.id_to_token(i) for i in ids).replace("Ġ", " ").replace("Ċ", "\n")


def record(completion: str = '{"sum": 4}', name: str = "a1") -> dict[str, Any]:
    return {"example_id": name, "messages": MESSAGES, "completion": completion}


def test_loss_is_on_the_completion_and_its_end_of_turn_only() -> None:
    tokenizer = CharTokenizer()
    [encoded] = encode_records(tokenizer, [record()], max_length=500).records
    trained = [t for t, counts in zip(encoded.tokens, encoded.loss_mask, strict=True) if counts]
    assert tokenizer.text(trained) == '{"sum": 4}<|im_end|>'
    assert encoded.num_completion == len('{"sum": 4}') + 1


def test_the_prompt_is_what_the_server_will_see() -> None:
    tokenizer = CharTokenizer()
    [encoded] = encode_records(tokenizer, [record()], max_length=500).records
    prompt = encode_prompt(tokenizer, MESSAGES)
    assert encoded.tokens[: encoded.num_prompt] == prompt
    assert tokenizer.text(prompt).endswith("<|im_start|>assistant\n")


def test_a_record_that_is_too_long_is_left_out_whole() -> None:
    tokenizer = CharTokenizer()
    records = [record(), record("x" * 400, name="long"), record(name="a2")]
    encoded = encode_records(tokenizer, records, max_length=300)
    assert [r.example_id for r in encoded.records] == ["a1", "a2"]
    assert encoded.too_long == ["long"]


def test_exactly_max_length_fits() -> None:
    tokenizer = CharTokenizer()
    length = len(encode_records(tokenizer, [record()], max_length=500).records[0].tokens)
    assert not encode_records(tokenizer, [record()], max_length=length).too_long
    assert encode_records(tokenizer, [record()], max_length=length - 1).too_long == ["a1"]


def test_a_template_without_end_of_turn_gets_the_eos_token() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = CharTokenizer(template)
    [encoded] = encode_records(tokenizer, [record(" yes \n")], max_length=500).records
    assert tokenizer.text(encoded.tokens[encoded.num_prompt :]) == "yes<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no generation prompt"),
    ],
)
def test_unusable_templates_are_refused(template: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_template(CharTokenizer(template), model="some-base-model")


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    template = "{{ messages | length }}" + CHATML
    with pytest.raises(ConfigError, match="renders the prompt differently"):
        encode_records(CharTokenizer(template), [record()], max_length=500)


def test_an_empty_completion_names_its_record() -> None:
    with pytest.raises(DataError, match="record a1: completion is empty"):
        encode_records(CharTokenizer(), [record("  ")], max_length=500)


def test_encoding_needs_no_torch() -> None:
    code = "import sys, distill.train.encode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
