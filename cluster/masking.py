"""Mask personal data: one value in a record gets one placeholder, and every kind is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from cluster.config import StrictModel
from cluster.example import Message
from cluster.personal_data import KINDS, PLACEHOLDER, Kind, find_personal_data

MAX_PASSES = 8


class MaskingConfig(StrictModel):
    """What is masked. Names and postal addresses have no form to find them by and stay."""

    kinds: tuple[Kind, ...] = KINDS
    """SECRET (passwords, private keys), CREDENTIALS (in URLs), API_KEY, EMAIL, IBAN, CARD, SSN,
    IP, PHONE, ACCOUNT (long runs of digits)."""
    min_account_digits: int = Field(default=9, ge=6, le=34)
    """Digits from which a run counts as an account number. Dates, round numbers and what stands
    beside a currency do not; ids and Unix times of that length do."""


def mask_texts(
    texts: Sequence[str], config: MaskingConfig | None = None
) -> tuple[list[str], Counter[str]]:
    """Mask the texts of one record; return them and how often each kind was replaced.

    `<EMAIL_1>` stands for the same address in all of them. Numbers go on behind placeholders that
    the texts hold already, so that none stands for two things; masking twice changes nothing.
    """
    config = config or MaskingConfig()
    numbers: Counter[str] = Counter()
    for text in texts:
        for kind, number in PLACEHOLDER.findall(text):
            # Longer ones are no placeholders of ours, and Python refuses to read very long ones.
            if len(number) <= 9:
                numbers[kind] = max(numbers[kind], int(number))
    known: dict[tuple[str, str], str] = {}
    counts: Counter[str] = Counter()

    def replaced(text: str) -> str:
        pieces: list[str] = []
        position = 0
        for found in find_personal_data(
            text, kinds=config.kinds, min_account_digits=config.min_account_digits
        ):
            key = (found.kind, found.value)
            if key not in known:
                numbers[found.kind] += 1
                known[key] = f"<{found.kind}_{numbers[found.kind]}>"
            counts[found.kind] += 1
            pieces += [text[position : found.start], known[key]]
            position = found.end
        return "".join([*pieces, text[position:]])

    masked: list[str] = []
    for text in texts:
        # Where two findings overlapped, what is left of the second may be one still.
        for _ in range(MAX_PASSES):
            before, text = text, replaced(text)
            if text == before:
                break
        masked.append(text)
    return masked, counts


def mask_messages(
    messages: Sequence[Message], config: MaskingConfig | None = None
) -> tuple[list[Message], Counter[str]]:
    """Mask the contents of a record's messages; roles stay."""
    texts, counts = mask_texts([message["content"] for message in messages], config)
    pairs = zip(messages, texts, strict=True)
    return [{**message, "content": text} for message, text in pairs], counts
