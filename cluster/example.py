"""One example's id: the same from the first prompt file to the served answer."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.storage import digest_of

Message = dict[str, str]
"""One chat message: `role` (`system`, `user`, `assistant`) and `content`."""


def example_id(messages: Sequence[Message]) -> str:
    """Return the id of a prompt: the first 16 hex digits of the SHA-256 of its canonical form.

    The same messages give the same id in every stage and at the gateway; surrounding white space
    of a message does not count, everything else does.
    """
    canonical = [[m["role"], str(m.get("content") or "").strip()] for m in messages]
    return digest_of(canonical)[:16]
