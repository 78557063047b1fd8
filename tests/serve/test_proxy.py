"""Ray Serve's own proxy with what we put before it: the environment variable reaches it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from serve.app import http_options
from serve.config import ServeConfig
from serve.front import HEAD_S


@pytest.mark.ray
def test_serve_s_proxy_bounds_heads_and_cleans_headers(
    ray_runtime: Any, free_port: Callable[[], int]
) -> None:
    from ray import serve as ray_serve
    from starlette.requests import Request

    @ray_serve.deployment(ray_actor_options={"num_cpus": 0})
    class Headers:
        async def __call__(self, request: Request) -> dict[str, str]:
            return dict(request.headers)

    config = ServeConfig(port=free_port())

    def ask(head: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", config.port), timeout=3 * HEAD_S) as client:
            client.sendall(head)
            received = b""
            while piece := client.recv(65_536):
                received += piece
        return received

    ray_serve.start(http_options=http_options(config))
    try:
        ray_serve.run(Headers.bind(), name=config.app_name)
        plain = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        got = ask(plain + b"x-request-id: a\xff b\r\nx-request-timeout-seconds: 9\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200")
        assert b'"x-request-id":"ab"' in got
        assert b"x-request-timeout-seconds" not in got
        assert ask(plain + b"x-any: \xff\r\n\r\n").startswith(b"HTTP/1.1 400")
        begin = time.monotonic()
        assert ask(b"GET / HTTP/1.1\r\nhost: ").startswith(b"HTTP/1.1 408")
        assert HEAD_S - 1 < time.monotonic() - begin < 2 * HEAD_S
    finally:
        ray_serve.shutdown()
