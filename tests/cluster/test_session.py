"""Ports that a server may listen on, what is said of others, and a Ray of the run's own."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time

import psutil
import pytest
from local_ray import local_ray

from cluster.errors import PrerequisiteError
from cluster.heap import heap_environment
from cluster.session import require_port


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
def test_a_port_is_free_or_taken_whatever_the_family_of_its_address(host: str) -> None:
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with pytest.raises(PrerequisiteError, match=rf"serve\.port {port} is taken on {host}"):
            require_port(port, field="serve.port", host=host)
    require_port(port, field="serve.port", host=host)


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_an_address_that_is_none_of_this_machine_is_not_called_taken(host: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        require_port(8000, field="serve.port", host=host)
    assert f"serve.port 8000 cannot be opened on {host}" in str(caught.value)
    assert "an address of this machine" in str(caught.value)


@pytest.mark.ray
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Ray's jemalloc"
)
def test_a_worker_that_is_given_the_heap_s_environment_has_it() -> None:
    import ray

    def grows() -> bool:
        from cluster.heap import leaves_holes

        return leaves_holes()

    with local_ray():
        task = ray.remote(grows)
        with_it = task.options(runtime_env={"env_vars": heap_environment()})
        assert ray.get([task.remote(), with_it.remote()]) == [True, False]


@pytest.mark.ray
def test_a_process_without_a_task_goes_and_the_next_task_gets_another() -> None:
    import ray

    with local_ray():
        task = ray.remote(lambda: os.getpid())
        first = ray.get(task.remote())
        assert ray.get(task.remote()) == first  # at once: it is still there
        end = time.monotonic() + 60
        while psutil.pid_exists(first) and time.monotonic() < end:
            time.sleep(0.5)
        assert not psutil.pid_exists(first)
        assert ray.get(task.remote()) != first
