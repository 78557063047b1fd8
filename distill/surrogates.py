"""Half of a surrogate pair: JSON can write one as an escape, and no file can hold it as text."""

from __future__ import annotations

import json
import re
from typing import Any

HALF = "holds half of a surrogate pair (\\ud800 to \\udfff)"
"""What is said of a value that does."""
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def holds_half(value: Any, *, source: str) -> bool:
    """Whether a value that was read from a JSON text holds one."""
    if not _ESCAPED.search(source):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def without_halves(text: str) -> str:
    """Return the text with the replacement character in place of each half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
