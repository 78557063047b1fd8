"""Everything that watches, on a real engine under real load: each panel's query has data.

A real Prometheus scrapes, a real teacher's server answers what the student gets wrong, a canary
runs, an alias moves, and the gateway's own page is looked at in a real browser.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment import QUESTION, SLO_S, Served
from devtools import open_page

from cluster.monitoring import dashboards
from cluster.registry import CanaryBounds, Split

pytestmark = [pytest.mark.ray, pytest.mark.model]

MONITORING = Path(dashboards.__file__).parent


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def load(served: Served) -> Iterator[None]:
    """Requests without end, for every adapter, with streams, mistakes and a canary."""
    bounds = CanaryBounds(min_samples=100_000, max_p90_ratio=100)
    served.registry.start_split("trial", Split(version=2, weight=0.5, bounds=bounds))
    stop = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=served.url, timeout=180) as http:
            body = {"messages": QUESTION, "max_tokens": 8, "ignore_eos": True}
            while not stop.is_set():
                for model in ("reconcile", "trial", "tiny-llama", "reconcile@v2", "nobody"):
                    http.post("/v1/chat/completions", json=body | {"model": model})
                http.post("/v1/chat/completions", json=body | {"model": "trial", "stream": True})

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def prometheus(
    ray_runtime: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """A Prometheus that scrapes this Ray every second; function that runs a query."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: `make system-deps`")
    folder = tmp_path_factory.mktemp("prometheus")
    for file in ("prometheus.yml", "rules.yml", "alerts.yml"):
        text = (MONITORING / file).read_text()
        for slow in ("interval: 5s", "interval: 15s", "interval: 1m"):
            text = text.replace(slow, "interval: 1s")
        text = text.replace("timeout: 4s", "timeout: 1s")
        text = text.replace("localhost:8090", f"localhost:{ray_runtime.metrics_port}")
        (folder / file).write_text(text)
    port = free_port()
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def query(expr: str) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expr})
        except httpx.TransportError:
            return []
        found = answer.json()
        if found.get("errorType") == "unavailable":
            return []
        assert found["status"] == "success", (expr, found)
        return [r for r in found["data"]["result"] if not math.isnan(float(r["value"][1]))]

    yield query
    server.terminate()
    server.wait(timeout=20)


def test_the_page_has_real_figures_and_a_promotion_from_it_is_served(
    served: Served, load: None, prometheus: Any
) -> None:
    wait_for(lambda: served.metrics()["all"]["answered"] >= 50)
    wait_for(lambda: served.metrics()["splits"].get("trial", {}).get("requests"))
    assert served.ask("reconcile").headers["x-distillery-model"] == "reconcile@v1"
    with open_page(f"{served.url}/dashboard") as page:
        page.size(1280, 1000)
        page.wait_for("document.querySelectorAll('#replicas tr th').length === 1")
        page.run("document.querySelector('[aria-label=\"Promote to prod: reconcile v2\"]').click()")
        page.press("Enter", code=13)
        page.wait_for("document.getElementById('said').innerText.includes('Done')")
        section = "document.querySelector('#adapters section[aria-label=\"reconcile\"]')"
        page.wait_for(f"{section}.innerText.includes('prod → v2')")
        wait_for(lambda: served.ask("reconcile").headers["x-distillery-model"] == "reconcile@v2")
        time.sleep(2.5)  # the page asks for figures every 2 s
        shown = served.metrics()
        names = page.run("[...document.querySelectorAll('#models th')].map(e => e.innerText)")
        assert {"base", "trial", "trial@v1", "trial@v2", "reconcile", "unknown"} <= set(names)
        assert "canary" in page.run("document.getElementById('splits').innerText")
        p90_s = shown["all"]["latency_s"]["p90"]
        assert 0 < p90_s < 120
        assert shown["all"]["ttft_s"]["p90"] <= p90_s * 1.1
        assert shown["all"]["slo_misses"] > 0
        assert shown["usd"]["reconcile"]["teacher_usd"] > 0
        assert shown["all"]["fallback_share"] > 0
        assert page.problems == []


@pytest.mark.parametrize("name", [d.uid for d in dashboards.SERVING])
def test_every_panel_of_the_serving_dashboards_has_data(
    served: Served, load: None, prometheus: Any, name: str
) -> None:
    (dashboard,) = [d for d in dashboards.SERVING if d.uid == name]
    empty = {
        f"{panel.title}: {query.expr}" for panel in dashboard.panels for query in panel.queries
    }
    panels = {
        f"{panel.title}: {query.expr}": query.expr.replace("$adapter", "reconcile")
        for panel in dashboard.panels
        for query in panel.queries
    }
    deadline = time.monotonic() + 90
    while empty and time.monotonic() < deadline:
        empty = {key for key in empty if not prometheus(panels[key])}
        time.sleep(1)
    assert empty == set()


def test_the_objectives_burn_rate_fires_the_alert(
    served: Served, load: None, prometheus: Any
) -> None:
    # Nothing answers within 2 ms, so all of the requests miss the objective.
    firing = 'ALERTS{alertname="DistilleryP90BurnFast",alertstate="firing"}'
    found = wait_for(lambda: prometheus(firing))
    assert {"trial", "base"} & {alert["metric"]["adapter"] for alert in found}


def test_gauges_that_do_not_change_stay(served: Served, load: None, prometheus: Any) -> None:
    # Ray's agent drops a gauge that is not set again; a minute's silence would end the series.
    time.sleep(10)
    (resident,) = served.http.get("/admin/status").json()["resident"]
    for name, value in (("slo_p90_seconds", SLO_S), ("resident_adapters", len(resident))):
        query = f"last_over_time(ray_distillery_{name}[5s])"
        (found,) = wait_for(lambda query=query: prometheus(query))
        assert float(found["value"][1]) == value
