"""API keys: how they are made, kept and recognised.

A key is `dk-<id>-<secret>`: eight hexadecimal digits that name it and 43 URL-safe characters, 256
random bits. Kept is one SHA-256 of the whole. Slow password hashes (bcrypt, scrypt) protect what a
person can remember; a secret of 256 random bits cannot be guessed from its SHA-256 (NIST SP
800-63B, section 5.1.2.2, sets the bar at 112 bits), and every request has to be checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from cluster.config import StrictModel
from cluster.errors import DataError
from cluster.storage import Store

KEY_FILE = "keys.json"
_TOKEN = re.compile(r"dk-([0-9a-f]{8})-[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64


class Key(StrictModel):
    """What is kept of an API key, and what it may do."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    """The public part; it stands in logs and lists."""
    name: str = Field(min_length=1, max_length=128)
    """Who or what uses it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 (hex) of the whole key."""
    created: AwareDatetime
    """When it was made."""
    expires: AwareDatetime | None = None
    """From when on it is refused."""
    models: list[str] = Field(default=["*"], min_length=1)
    """Patterns (`*`, `?`, `[…]`) of names it may ask for. One without `@` covers every version and
    alias of a name; one with `@` is compared with the whole."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests a minute; `None` is no limit, here and below."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens a minute, prompts and completions."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """Tokens a day (UTC)."""
    usd_per_day: float | None = Field(default=None, gt=0)
    """Dollars a day (UTC), by the server's price."""
    admin: bool = False
    """May use what changes the server."""
    revoked: bool = False
    """Refused for good."""

    def is_valid(self, *, now: float) -> bool:
        """Whether it is accepted at the Unix time `now`."""
        return not self.revoked and (self.expires is None or now < self.expires.timestamp())

    def may_use(self, model: str) -> bool:
        """Whether it covers the name a client asks for."""
        name = model.partition("@")[0]
        return any(fnmatchcase(model if "@" in p else name, p) for p in self.models)


def new_key(name: str, **allowed: object) -> tuple[str, Key]:
    """Make a key; returns the secret, which is kept nowhere, and what is kept of it.

    `allowed` are further fields of Key. DataError when one of them cannot be used.
    """
    id_ = secrets.token_hex(4)
    token = f"dk-{id_}-{secrets.token_urlsafe(32)}"
    fields = {"id": id_, "name": name, "sha256": _digest(token), "created": datetime.now(UTC)}
    try:
        return token, Key.model_validate(fields | allowed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{field}: {first.get('input')!r} cannot be used; {first['msg']}") from None


class Keyring:
    """The known keys, looked up by the id that a token carries."""

    def __init__(self, keys: dict[str, Key] | None = None):
        self.keys = keys or {}

    def find(self, token: str, *, now: float | None = None) -> Key | None:
        """Return the valid key of `token`; `None` if it is forged, expired, revoked or unknown."""
        match = _TOKEN.fullmatch(token)
        key = self.keys.get(match[1]) if match else None
        # An unknown id is compared as well, so that it takes as long as a wrong secret.
        same = hmac.compare_digest(_digest(token), key.sha256 if key else _NOBODY)
        valid = key is not None and key.is_valid(now=time.time() if now is None else now)
        return key if same and valid else None


class KeyFile:
    """`keys.json` in a folder at a URI."""

    def __init__(self, uri: str):
        self.store = Store(uri)

    def exists(self) -> bool:
        """Whether keys were ever made here."""
        return self.store.exists(KEY_FILE)

    def read(self) -> dict[str, Key]:
        """Keys by id; none if there is no file yet. DataError names a broken file."""
        return parse_keys(self.read_bytes()) if self.exists() else {}

    def read_bytes(self) -> bytes:
        """The file as it lies there."""
        return self.store.read_bytes(KEY_FILE)

    def add(self, key: Key) -> None:
        """Keep a new key."""
        with self._lock():
            self._write(self.read() | {key.id: key})

    def revoke(self, id_: str) -> Key:
        """Refuse a key from now on; DataError lists the known ones if it is none of them."""
        with self._lock():
            keys = self.read()
            if id_ not in keys:
                known = ", ".join(f"{k.id} ({k.name})" for k in keys.values()) or "none"
                raise DataError(f"{id_!r} is no key of {self.store.uri}; known: {known}.")
            keys[id_] = keys[id_].model_copy(update={"revoked": True})
            self._write(keys)
            return keys[id_]

    def remove(self, id_: str) -> None:
        """Forget a key that was made for a moment."""
        with self._lock():
            self._write({id_of: key for id_of, key in self.read().items() if id_of != id_})

    def _write(self, keys: dict[str, Key]) -> None:
        rows = [key.model_dump(mode="json") for key in keys.values()]
        self.store.write_json(KEY_FILE, {"keys": rows})

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Serialise writers on a local folder; an object store has one writer."""
        if not self.store.is_local:
            yield
            return
        folder = Path(self.store.root)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def parse_keys(data: bytes) -> dict[str, Key]:
    """Read the content of a key file; DataError says what is wrong and shows no hash."""
    try:
        rows = json.loads(data)["keys"]
        keys = [Key.model_validate(row) for row in rows]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{KEY_FILE}: field {field!r}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{KEY_FILE} is no list of keys ({type(error).__name__})") from None
    return {key.id: key for key in keys}


def _digest(token: str) -> str:
    # A header may hold lone surrogates: they make a wrong token, not an error.
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
