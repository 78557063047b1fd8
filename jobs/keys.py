"""What `distillery keys` does: make, list and revoke API keys of the gateway."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.display import Display
from serve.keys import Key, KeyFile, new_key


def create_key(uri: str, name: str, *, expires_days: float | None, **allowed: Any) -> str:
    """Make a key and return it with what to know about it; it is shown this once."""
    if expires_days is not None:
        allowed["expires"] = datetime.now(UTC) + timedelta(days=expires_days)
    token, key = new_key(name, **allowed)
    KeyFile(uri).add(key)
    return (
        f"{token}\n"
        f"This is the only time the key is shown; {uri}/keys.json keeps its SHA-256. "
        f"Revoke it with: distillery keys revoke {key.id} --keys {uri}"
    )


def revoke_key(uri: str, id_: str) -> str:
    """Refuse a key from now on; running gateways follow within `serve.keys_poll_s`."""
    key = KeyFile(uri).revoke(id_)
    return f"{key.id} ({key.name}) is revoked"


def list_keys(uri: str) -> None:
    """Print a table of keys, without anything that could be used as one."""
    columns = ["id", "name", "state", "models", "limits", "created (UTC)"]
    rows = [_row(key) for key in KeyFile(uri).read().values()]
    Display().table(f"API keys in {uri}", columns, rows)


def _row(key: Key) -> list[Any]:
    now = datetime.now(UTC)
    state = "revoked" if key.revoked else "expired" if not key.is_valid(now=now.timestamp()) else ""
    if not state:
        state = f"until {key.expires:%Y-%m-%d}" if key.expires else "valid"
    limits = [
        f"{value:g} {unit}"
        for value, unit in (
            (key.requests_per_minute, "req/min"),
            (key.tokens_per_minute, "tok/min"),
            (key.tokens_per_day, "tok/day"),
            (key.usd_per_day, "$/day"),
        )
        if value is not None
    ]
    name = f"{key.name} (admin)" if key.admin else key.name
    created = f"{key.created:%Y-%m-%d %H:%M}"
    return [key.id, name, state, ", ".join(key.models), ", ".join(limits) or "none", created]
