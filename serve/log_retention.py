"""How long the request log is kept: files older than so many days are removed, and only ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cluster.storage import Store

NAME = re.compile(r"requests-(\d{8}T\d{12})-[0-9a-f]{8}\.parquet")
"""A file of the log: when it was written (UTC, to the microsecond), and a random part."""
TIME = "%Y%m%dT%H%M%S%f"


def file_time(name: str) -> datetime | None:
    """Return when a file of the log was written, by its name; `None`: it is no file of the log."""
    match = NAME.fullmatch(name)
    return datetime.strptime(match[1], TIME).replace(tzinfo=UTC) if match else None


def remove_old(store: Store, *, days: float, now: datetime) -> int:
    """Remove the log's files that are older than `days`; returns how many.

    The name decides, not the store's own times: a copied log keeps its age. Other files stay. A
    row is at most one flush older than its file. `OSError` from a store that is away.
    """
    limit = now - timedelta(days=days)
    old = [name for name in store.names() if (at := file_time(name)) is not None and at < limit]
    for name in old:
        store.remove(name)
    return len(old)
