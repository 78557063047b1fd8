"""HTTPS: the certificate of the configuration at Ray Serve's own proxy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cluster.errors import PrerequisiteError
from jobs.client import api_client
from serve.app import base_url, http_options
from serve.config import ServeConfig


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a self-signed certificate for another host, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=gateway.example.com", "-out", cert, "-keyout", key],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def test_a_certificate_that_cannot_be_read_is_named() -> None:
    config = ServeConfig(tls_cert="/no/cert.pem", tls_key="/no/key.pem")
    with pytest.raises(PrerequisiteError, match=r"serve\.tls_cert '/no/cert\.pem'"):
        http_options(config)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
    ],
)
def test_the_url_of_an_address(host: str, url: str) -> None:
    assert base_url(ServeConfig(host=host, allow_without_keys=True)) == url


@pytest.mark.ray
def test_serve_s_proxy_speaks_https_with_it(
    ray_runtime: Any, certificate: tuple[str, str], free_port: Callable[[], int]
) -> None:
    from ray import serve as ray_serve
    from starlette.requests import Request

    @ray_serve.deployment(ray_actor_options={"num_cpus": 0})
    class Models:
        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "reconcile", "object": "model"}]}

    config = ServeConfig(port=free_port(), tls_cert=certificate[0], tls_key=certificate[1])
    url = base_url(config)
    assert url == f"https://127.0.0.1:{config.port}"
    ray_serve.start(http_options=http_options(config))
    try:
        ray_serve.run(Models.bind(), name=config.app_name)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/v1/models")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{config.port}/v1/models")
        with api_client(config, url, purpose="test") as client:
            assert [model.id for model in client.models.list()] == ["reconcile"]
    finally:
        ray_serve.shutdown()
