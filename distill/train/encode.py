"""Records become token ids and a loss mask. Pure: the tokenizer is passed in, torch is not needed.

The prompt is the chat template of the messages with its generation prompt, exactly what the
server will feed the student; the completion follows with the template's own end of turn. There
is loss on the completion and the end of turn, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import ConfigError, DataError
from distill.records import Message


@dataclass(frozen=True)
class Encoded:
    """One sequence as token ids: `num_prompt` without loss, then the completion with it."""

    example_id: str
    tokens: list[int]
    num_prompt: int
    kind: str = "answer"
    """What the completion is: an answer, a label or a rationale."""
    num_rationale: int = 0
    """Tokens of reasoning with which the completion begins."""

    @property
    def num_completion(self) -> int:
        """Tokens with loss: the completion and its end of turn."""
        return len(self.tokens) - self.num_prompt

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """The completion's tokens as runs of (kind, count)."""
        runs = [
            ("rationale", self.num_rationale),
            (self.kind, self.num_completion - self.num_rationale),
        ]
        return [(kind, count) for kind, count in runs if count]

    @property
    def loss_mask(self) -> list[bool]:
        """True where the token is predicted and counts."""
        return [False] * self.num_prompt + [True] * self.num_completion


@dataclass(frozen=True)
class Item:
    """What is drawn into a step as one: a record's sequence, its three tasks, or a pair."""

    example_id: str
    sequences: tuple[Encoded, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def num_targets(self) -> int:
        """Tokens with loss of all its sequences."""
        return sum(sequence.num_completion for sequence in self.sequences)


@dataclass(frozen=True)
class EncodedRecords:
    """What `encode_records` made, and the ids of the records that did not fit."""

    records: list[Encoded]
    too_long: list[str]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids a model is given for `messages`, generation prompt included."""
    return _tokenize(tokenizer, [prompt_text(tokenizer, messages)])[0]


def encode_records(
    tokenizer: Any, records: Sequence[dict[str, Any]], *, max_length: int
) -> EncodedRecords:
    """Encode records (`example_id`, `messages`, `completion`) for training.

    A record longer than `max_length` tokens is left out and its id returned: a cut completion
    would teach the student to stop in the middle. Raises ConfigError for an unusable template
    and DataError for a record that the template rejects.
    """
    encoded = encode_each(tokenizer, records)
    return EncodedRecords(
        [record for record in encoded if len(record.tokens) <= max_length],
        [record.example_id for record in encoded if len(record.tokens) > max_length],
    )


def encode_each(tokenizer: Any, records: Sequence[dict[str, Any]]) -> list[Encoded]:
    """Encode records in order, whatever their length; raises as `encode_records` does."""
    texts = [_texts(tokenizer, record) for record in records]
    prompts = _tokenize(tokenizer, [prompt for prompt, _ in texts])
    completions = _tokenize(tokenizer, [completion for _, completion in texts])
    wholes = _tokenize(tokenizer, [prompt + completion for prompt, completion in texts])
    encoded = []
    for record, prompt, completion, whole in zip(
        records, prompts, completions, wholes, strict=True
    ):
        # Where the tokenizer would merge across the boundary, the prompt stays as the server
        # tokenizes it: that is what the student will have to continue.
        tokens = whole if whole[: len(prompt)] == prompt else prompt + completion
        encoded.append(Encoded(record["example_id"], tokens, len(prompt)))
    return encoded


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return the chat template of `messages` with the generation prompt."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def check_template(tokenizer: Any, *, model: str) -> None:
    """Raise ConfigError when the tokenizer cannot turn a conversation into a prompt."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"student.model: {model!r} has no chat template; use the model's instruct version or "
            "put a chat_template.jinja into its folder"
        )
    probe: list[Message] = [{"role": "user", "content": "?"}]
    plain = _render(tokenizer, probe, add_generation_prompt=False)
    if prompt_text(tokenizer, probe) == plain:
        raise ConfigError(
            f"student.model: the chat template of {model!r} has no generation prompt, so a prompt "
            "would not end where an answer begins; add an `{% if add_generation_prompt %}` part "
            "to its chat_template.jinja"
        )


def _texts(tokenizer: Any, record: dict[str, Any]) -> tuple[str, str]:
    """Return the prompt's text and what follows it, up to and with the end of turn."""
    name, answer = record["example_id"], str(record["completion"])
    if not answer.strip():
        raise DataError(f"record {name}: completion is empty; curate the records before training")
    messages = list(record["messages"])
    try:
        prompt = prompt_text(tokenizer, messages)
        whole = _render(
            tokenizer,
            [*messages, {"role": "assistant", "content": answer}],
            add_generation_prompt=False,
        )
    except ConfigError as error:
        raise DataError(f"record {name}: {error}") from error
    if not whole.startswith(prompt):
        raise ConfigError(
            f"record {name}: the chat template renders the prompt differently once the answer "
            "follows, so the student would train on prompts that it never meets; the text with "
            "the answer must begin with the prompt's text"
        )
    tail = whole[len(prompt) :]
    start = tail.find(answer)
    if start < 0:  # templates that trim what they are given
        answer = answer.strip()
        start = tail.find(answer)
    if start < 0:
        raise ConfigError(
            f"record {name}: the chat template changes the completion; it must contain it as it is"
        )
    head, end_of_turn = tail[: start + len(answer)], tail[start + len(answer) :].rstrip()
    return prompt, head + (end_of_turn or tokenizer.eos_token or "")


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in plain)
        raise ConfigError(
            f"the student's chat template rejects a conversation of roles {roles}: {error}"
        ) from error


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    return [list(ids) for ids in encoded["input_ids"]]
