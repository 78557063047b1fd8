"""What comes in before a request is one: slow and endless heads and bodies, headers, origins.

A real uvicorn with the protocol and the middleware that Ray Serve's proxy gets, on loopback.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import loopback
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve import front
from serve.app import base_url
from serve.config import ServeConfig
from serve.cors import Cors
from serve.errors import ApiError
from serve.http_server import HttpServer
from serve.reading import read_body

LIMIT = 100_000
PAGES = ["https://app.example.com"]


async def echo(request: Request) -> JSONResponse:
    """What the gateway does with a body, and the headers that got through."""
    try:
        body = await read_body(request, max_bytes=LIMIT, timeout_s=0.5)
    except ApiError as error:
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)
    headers = {k: v for k, v in request.headers.items() if k.startswith(("x-", "serve"))}
    return JSONResponse({"bytes": len(body), "headers": headers})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    before = dict(uvicorn.config.HTTP_PROTOCOLS)
    app = Starlette(
        routes=[Route("/", echo, methods=["GET", "POST"])],
        middleware=[*front.middlewares(), behind_cors(cors_origins=PAGES, keys="keys")],
    )
    with running(app) as port:
        yield port
    uvicorn.config.HTTP_PROTOCOLS.update(before)


def behind_cors(**fields: Any) -> Middleware:
    config = ServeConfig(**fields)
    return Middleware(Cors, config=lambda: config)


@contextmanager
def running(app: Any) -> Iterator[int]:
    port = loopback.free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(timeout=10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_a_plain_request_goes_through(port: int) -> None:
    got = httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * 1000)
    assert got.json()["bytes"] == 1000


def test_a_declared_length_over_the_limit_is_refused_unread(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n")
        assert answer(client).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_cut_at_the_limit(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        sent = 0
        try:
            while sent < 200_000_000:
                client.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    assert sent < 100_000_000


def test_a_body_a_little_over_the_limit_is_told_so(port: int) -> None:
    got = httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * (LIMIT + 1))
    assert got.status_code == 413
    assert str(LIMIT) in got.json()["error"]["message"]
    assert got.json()["error"]["code"] == "request_too_large"


def test_a_body_that_trickles_in_is_given_up(port: int) -> None:
    begin = time.monotonic()
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
        try:
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        assert answer(client).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begin < 8


def test_a_slow_loris_holds_a_connection_for_so_long_and_nobody_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEAD_S", 1.0)
    slow = [connect(port) for _ in range(50)]
    try:
        begin = time.monotonic()
        for client in slow:
            client.sendall(b"POST / HTTP/1.1\r\nx-a: ")
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 200
        while time.monotonic() - begin < 0.6:
            for client in slow:
                client.sendall(b"a")
            time.sleep(0.1)
        assert {answer(client).split(b"\r\n")[0][:12] for client in slow} == {b"HTTP/1.1 408"}
        assert time.monotonic() - begin < 5
    finally:
        for client in slow:
            client.close()


def test_a_connection_that_says_nothing_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEAD_S", 0.3)
    for opening in (b"", b"\r\n\r\n"):
        with connect(port) as client:
            client.sendall(opening)
            assert answer(client).startswith(b"HTTP/1.1 408")


def test_the_deadline_is_for_the_head_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "HEAD_S", 0.3)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            assert client.get("/").status_code == 200
            time.sleep(0.5)  # idle between requests is the keep-alive timeout's


def test_an_endless_head_is_refused(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nx-a: ")
        try:
            for _ in range(64):
                client.sendall(b"a" * 65_536)
        except OSError:
            return
        assert answer(client).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("value", [b"\xff\xfe", b"\xe2\x28\xa1"])
def test_a_header_that_is_no_utf8_is_a_wrong_request(port: int, value: bytes) -> None:
    with connect(port) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-a: " + value + b"\r\n\r\n"
        )
        got = answer(client)
    assert got.startswith(b"HTTP/1.1 400")
    assert b"not valid UTF-8" in got


def test_request_ids_are_cleaned_and_serve_s_own_headers_dropped(port: int) -> None:
    headers = {
        b"x-request-id": b"a b\xff/c",
        b"x-request-disconnect-disabled": b"1",
        b"x-request-timeout-seconds": b"-1",
        b"serve_multiplexed_model_id": b"../../etc",
        b"x-mine": b"kept",
    }
    got = httpx.get(f"http://127.0.0.1:{port}/", headers=list(headers.items())).json()["headers"]
    assert got == {"x-request-id": "abc", "x-mine": "kept"}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_get_more_than_a_4xx(port: int, junk: bytes) -> None:
    with connect(port) as client:
        try:
            client.sendall(
                b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + junk + b"\r\n\r\n"
            )
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = answer(client)
    assert got == b"" or got.split(b" ")[1][:1] in (b"2", b"4")


def test_a_page_of_another_origin_is_refused_before_anything_is_done(port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    refused = httpx.post(url, content=b"{}", headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert httpx.post(url, content=b"{}", headers={"origin": "http://["}).status_code == 403
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert httpx.options(url, headers=asked).status_code == 403
    own = httpx.get(url, headers={"origin": f"http://127.0.0.1:{port}"})
    assert own.status_code == 200


def test_a_page_that_is_named_may_call(port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    headers = {"origin": PAGES[0], "access-control-request-method": "POST"}
    asked = httpx.options(
        url, headers=headers | {"access-control-request-headers": "authorization"}
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGES[0]
    got = httpx.post(url, content=b"{}", headers={"origin": PAGES[0]})
    assert got.headers["access-control-allow-origin"] == PAGES[0]
    assert json.loads(got.content)["bytes"] == 2


def test_without_keys_only_names_of_this_machine_are_answered() -> None:
    """A page may point its own host name at 127.0.0.1 and is then of the same origin."""

    def status(port: int, host: str) -> int:
        url = f"http://127.0.0.1:{port}/"
        headers = {"host": host, "origin": f"http://{host}"}
        answers = [httpx.get(url, headers={"host": host}), httpx.post(url, headers=headers)]
        (code,) = {got.status_code for got in answers}
        if code == 403:
            said = answers[0].json()["error"]["message"]
            assert "serve.keys" in said
            assert "http://127.0.0.1" in said
        return code

    strangers = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[::"]
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])], middleware=[behind_cors()])
    with running(app) as port:
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LocalHost", "127.0.0.2", "[::1]:8"):
            assert status(port, host) == 200
        for host in strangers:
            assert status(port, host) == 403
        with connect(port) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")  # a program: no browser leaves it out
            assert answer(client).startswith(b"HTTP/1.1 200")
    for fields in ({"keys": "keys"}, {"allow_without_keys": True}):
        with running(Starlette(routes=app.routes, middleware=[behind_cors(**fields)])) as port:
            assert status(port, "gateway.example.com") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::"])
def test_the_gateway_listens_on_an_address_of_either_family(host: str) -> None:
    app = Starlette(routes=[Route("/", echo)], middleware=[behind_cors()])
    config = ServeConfig(host=host, port=loopback.free_port(), allow_without_keys=True)
    server = HttpServer(app, config)

    async def ask() -> int:
        try:
            server.start()
        except OSError:
            pytest.skip(f"no address {host} here")
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(base_url(config))).status_code
        finally:
            await server.stop()

    assert asyncio.run(ask()) == 200
