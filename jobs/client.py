"""A client of the gateway for our own commands, with the key and the certificate it asks for."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cluster.errors import PrerequisiteError
from serve.config import ServeConfig
from serve.keys import KeyFile, new_key

if TYPE_CHECKING:
    from openai import OpenAI

KEY_ENV = "DISTILLERY_API_KEY"
KEY_LIFE = timedelta(hours=1)
KEY_WAIT_S = 30.0
"""How long a running gateway may take to read a new key."""


@contextmanager
def api_client(config: ServeConfig, url: str, *, purpose: str) -> Iterator[OpenAI]:
    """Yield an OpenAI client of the gateway at `url`.

    Where keys are asked for it takes the one in DISTILLERY_API_KEY, or else makes one in
    `serve.keys` that is gone when the block ends.
    """
    from openai import DefaultHttpxClient, OpenAI

    http = None
    if config.tls_cert:
        # Our own server's own certificate is the one thing trusted; it may name another host.
        context = ssl.create_default_context(cafile=config.tls_cert)
        context.check_hostname = False
        http = DefaultHttpxClient(verify=context)
    with (
        _key(config, purpose=purpose) as key,
        OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http) as client,
    ):
        if config.keys:
            _wait_for_key(client)
        yield client


@contextmanager
def _key(config: ServeConfig, *, purpose: str) -> Iterator[str]:
    given = os.environ.get(KEY_ENV) if config.keys else "none"
    if given:
        yield given
        return
    file = KeyFile(config.keys)
    token, key = new_key(f"distillery {purpose}", expires=datetime.now(UTC) + KEY_LIFE)
    try:
        file.add(key)
    except OSError as error:
        raise PrerequisiteError(
            f"the server asks for an API key: put one into {KEY_ENV} (a temporary one could not be "
            f"made in serve.keys {config.keys!r}: {error})."
        ) from error
    try:
        yield token
    finally:
        file.remove(key.id)


def _wait_for_key(client: OpenAI) -> None:
    """Ask until the gateway, which reads its keys now and then, knows this one."""
    from openai import APIConnectionError, AuthenticationError

    deadline = time.monotonic() + KEY_WAIT_S
    while True:
        try:
            client.models.list()
            return
        except AuthenticationError:
            if time.monotonic() > deadline:
                raise PrerequisiteError(
                    f"the server refuses this API key: put another into {KEY_ENV}, or make one "
                    "with `distillery keys create`."
                ) from None
            time.sleep(0.2)
        except APIConnectionError:
            return  # The caller's own request says it better.
