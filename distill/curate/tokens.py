"""How long a text is: in tokens where a tokenizer is named, in words where none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

FILE = "tokenizer.json"


@dataclass(frozen=True)
class LengthCounter:
    """Counts a text; `unit` says what is counted: `tokens` or `words`."""

    unit: str
    count: Callable[[str], int]


def length_counter(tokenizer: str) -> LengthCounter:
    """Return the counter of a tokenizer folder, or of words for an empty name.

    Only `tokenizer.json` is read, by the tokenizers library; special tokens do not count.
    ConfigError when the folder has none.
    """
    if not tokenizer:
        return LengthCounter("words", lambda text: len(text.split()))
    file = Path(tokenizer).expanduser() / FILE
    if not file.is_file():
        raise ConfigError(
            f"curate.tokenizer {tokenizer!r}: there is no {file}. Give the folder of a model or "
            f"tokenizer with {FILE}, such as the student's, or leave it empty to count words."
        )
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(file))
    # A file may carry the limits of its last use; a length must not be cut by them.
    loaded.no_truncation()
    loaded.no_padding()
    return LengthCounter(
        "tokens", lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
    )
