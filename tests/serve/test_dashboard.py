"""The page at `/dashboard` in a real browser, on the gateway's own parts without an engine."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from devtools import Page, open_page
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse

from cluster.registry import AdapterManifest, Registry, Split
from serve.admin import Admin
from serve.admit import Door
from serve.config import ServeConfig
from serve.dashboard import PAGE, PAGE_HEADERS
from serve.errors import ApiError
from serve.keys import KeyFile, new_key
from serve.live import LiveFigures
from serve.routes import Alias, NotLoaded, RouteTable
from serve.split.running import Splits
from serve.watcher import RegistryWatcher

# A name from a manifest is text, whatever it looks like.
MARKUP = "<img src=x onerror=alert(1)>"
GATES = [
    {"name": "schema_valid", "figure": 0.995, "threshold": 0.98, "comparison": ">=", "passed": True,
     "reason": ""},
    {"name": "transfer_ratio", "figure": 0.85, "threshold": 0.9, "comparison": ">=",
     "passed": False, "reason": ""},
]  # fmt: skip


def publish(registry: Registry, folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(text)
    manifest = AdapterManifest(
        name=name, base_model="base", base_digest="b" * 64, rank=8, alpha=16,
        target_modules=["q_proj"], task=name, task_digest="t" * 64, dataset_digest="d" * 64,
        teacher=MARKUP if name == "untrusted" else "claude-sonnet-4", train={}, gates=GATES,
    )  # fmt: skip
    registry.publish(folder, manifest)


class Gateway:
    """What the real one does for the page, over HTTP."""

    def __init__(self, registry: Registry, config: ServeConfig):
        self.registry = registry
        clock = Clock(ago_s=240)
        self.live = LiveFigures(slo_p90_s=config.slo_p90_s, clock=clock)
        fill(self.live, clock)
        table = RouteTable("base")
        self.splits = Splits(registry, table)
        self.door = Door(config, price=None)

        async def load(model_id: str) -> list[NotLoaded | None]:
            return [None, None]

        async def everywhere(method: str, *arguments: Any) -> list[Any]:
            return [["reconcile@v1"], ["reconcile@v1", "reconcile@v2"]]

        self.watcher = RegistryWatcher(registry, table=table, load=load)
        self.admin = Admin(
            registry, watcher=self.watcher, splits=self.splits, everywhere=everywhere
        )
        self.app = FastAPI()
        self.app.get("/dashboard")(self.page)
        self.app.get("/admin/metrics")(self.metrics)
        self.app.get("/admin/status")(self.status)
        self.app.post("/admin/adapters/{action}")(self.act)
        self.app.add_exception_handler(ApiError, self.refuse)  # type: ignore[arg-type]

    async def page(self) -> Any:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def metrics(self, request: Request) -> Any:
        self.door.require_admin(request.headers)
        return JSONResponse(self.live.snapshot() | {"splits": self.splits.status()})

    async def status(self, request: Request) -> Any:
        self.door.require_admin(request.headers)
        return JSONResponse(await self.admin.status())

    async def act(self, action: str, request: Request) -> Any:
        key = self.door.require_admin(request.headers)
        by = f"key {key.name}" if key else ""
        return JSONResponse(await self.admin.act(action, await request.json(), by=by))

    async def refuse(self, request: Request, error: ApiError) -> Any:
        return JSONResponse(error.body, status_code=error.status)

    async def follow(self) -> None:
        await self.door.start()
        asyncio.get_running_loop().create_task(self.splits.follow(poll_s=0.1))
        await self.watcher.run(poll_s=0.1)


@contextmanager
def running(gateway: Gateway) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gateway.app, log_level="error"))

    async def serve() -> None:
        following = asyncio.create_task(gateway.follow())
        await server.serve(sockets=[listening])
        following.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not (server.started and gateway.watcher.synced):
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(str(tmp_path / "registry"))
    for name in ("reconcile", "extract", "untrusted"):
        for text in ("one", "two"):
            publish(made, tmp_path / "adapter", name, text)
        made.promote(name, 1)
    made.start_split("reconcile", Split(version=2, weight=0.2))
    return made


class Clock:
    """Now, or `ago_s` before now while the past is being told."""

    def __init__(self, ago_s: float) -> None:
        self.ago_s = ago_s

    def __call__(self) -> float:
        return time.monotonic() - self.ago_s


def fill(live: LiveFigures, clock: Clock) -> None:
    """A hundred requests in four minutes: 60 took 0.2 s, 32 took 0.49 s, 8 took 2 s."""
    rng = random.Random(7)
    latencies_s = [0.2] * 60 + [0.49] * 32 + [2.0] * 8
    rng.shuffle(latencies_s)
    for number, latency_s in enumerate(latencies_s):
        clock.ago_s = 240 * (1 - number / 100)
        live.answered(("reconcile", "v1"), latency_s=latency_s, ttft_s=0.05, completion_tokens=30)
        live.checked(("reconcile", "v1"), passed=number >= 4)
        if latency_s > 1:
            live.missed_objective(("reconcile", "v1"))
    for _ in range(4):
        live.fell_back(("reconcile", "v1"))
    live.paid("reconcile", teacher_usd=0.5, saved_usd=12.25)
    clock.ago_s = 0


def try_out(splits: Splits, split: Split) -> None:
    """Forty requests of the canary, a hundred and sixty of the version it would replace."""
    rng = random.Random(7)
    for number in range(200):
        splits.observe_version(
            Alias("reconcile", "prod"), split, second=number % 5 == 0,
            latency_s=0.3 * rng.lognormvariate(0, 0.2),
        )  # fmt: skip


def press(page: Page, label: str) -> None:
    page.wait_for(f"document.querySelector('button[aria-label=\"{label}\"]') !== null")
    page.run(f"document.querySelector('button[aria-label=\"{label}\"]').click()")


@pytest.mark.slow
def test_the_page_shows_figures_and_moves_an_alias(registry: Registry, tmp_path: Path) -> None:
    gateway = Gateway(registry, ServeConfig(slo_p90_s=1.0))
    with running(gateway) as url, open_page(f"{url}/dashboard") as page:
        page.size(1280, 1200)
        page.wait_for("document.querySelectorAll('#replicas tr').length === 2")
        try_out(gateway.splits, registry.splits("reconcile")["prod"])
        page.wait_for("document.getElementById('splits').innerText.includes('40 / 160')")
        row = page.run("document.querySelector('#models tr').innerText").split("\t")
        assert row[:2] == ["reconcile", "100"]
        assert [float(row[i].removesuffix(" ms")) for i in (3, 4)] == pytest.approx(
            [200, 490], rel=0.03
        )
        assert float(row[5].removesuffix(" s")) == pytest.approx(2.0, rel=0.03)
        assert row[9:] == ["96.0%", "4.0%", "$0.500", "$12.25"]
        text = page.text()
        assert "schema_valid 0.995 (>= 0.98)" in text
        assert "transfer_ratio 0.85 (>= 0.9)" in text
        assert MARKUP in text
        assert "wait: not enough requests to tell" in text

        picture = Path(os.environ.get("DISTILLERY_SCREENSHOT", tmp_path / "dashboard.png"))
        page.screenshot(picture)
        assert picture.stat().st_size < 300_000

        # Nothing moves unless it is confirmed.
        press(page, "Promote to prod: extract v2")
        page.wait_for("document.getElementById('confirm').open")
        page.run("document.getElementById('cancel').click()")
        assert registry.aliases("extract") == {"prod": 1}
        press(page, "Promote to prod: extract v2")
        page.press("Enter", code=13)
        page.wait_for("document.getElementById('said').innerText.includes('Done')")
        assert registry.aliases("extract") == {"prod": 2}
        page.wait_for("document.body.innerText.includes('prod → v2')")
        press(page, "Roll back: extract prod")
        page.press("Enter", code=13)
        page.wait_for("document.body.innerText.includes('history of prod: 3 moves')")
        assert registry.aliases("extract") == {"prod": 1}
        press(page, "End: reconcile prod")
        page.press("Enter", code=13)
        page.wait_for("document.getElementById('splits').innerText === 'None runs.'")
        assert registry.splits("reconcile") == {}
        assert page.problems == []
        assert_readable(page, tmp_path)


@pytest.mark.slow
def test_with_keys_the_page_shows_nothing_without_an_admins(
    registry: Registry, tmp_path: Path
) -> None:
    file = KeyFile(str(tmp_path / "keys"))
    tokens = {}
    for name, admin in (("operator", True), ("customer", False)):
        tokens[name], key = new_key(name, admin=admin)
        file.add(key)
    gateway = Gateway(registry, ServeConfig(keys=str(tmp_path / "keys")))
    with running(gateway) as url, open_page(f"{url}/dashboard") as page:
        page.wait_for("!document.getElementById('locked').hidden")
        for name, allowed in (("customer", False), ("operator", True)):
            page.run("document.getElementById('first-key').focus()")
            page.type(tokens[name])
            page.press("Enter", code=13)
            if not allowed:
                page.wait_for("document.getElementById('refusal').innerText.includes('--admin')")
                assert page.run("document.getElementById('figures').hidden")
                assert "reconcile" not in page.text()
        page.wait_for("!document.getElementById('figures').hidden")
        page.wait_for("document.getElementById('locked').hidden")
        press(page, "Promote to prod: extract v2")
        page.press("Enter", code=13)
        page.wait_for("document.getElementById('said').innerText.includes('Done')")
        assert registry.history("extract", "prod")[-1]["by"] == "key operator"
        assert page.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def assert_readable(page: Page, folder: Path) -> None:
    """In both colour schemes, on a desk and a phone: contrast, names, nothing cut off."""
    from PIL import Image

    pixels = {}
    for scheme in ("dark", "light"):
        page.color_scheme(scheme)
        page.screenshot(folder / f"{scheme}.png")
        pixels[scheme] = sum(Image.open(folder / f"{scheme}.png").convert("RGB").getpixel((5, 5)))
        assert page.run(CONTRAST) >= 4.5, scheme
    assert pixels["dark"] < 150
    assert pixels["light"] > 700
    unnamed = "[...document.querySelectorAll('button, input')].filter(e => !(e.innerText ||"
    assert page.run(f"{unnamed} e.labels?.length || e.ariaLabel)).length") == 0
    assert page.run("[...document.querySelectorAll('th')].every(e => e.scope)")
    page.size(380, 800)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


# The least contrast of a text with the page behind it, WCAG 2.2 (1.4.3 wants 4.5).
CONTRAST = """(() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
  };
  const texts = [...document.querySelectorAll("main *")].filter(e =>
    e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return Math.min(...texts.map(e => {
    const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""


def test_the_policy_lets_nothing_in_but_the_pages_own_style_and_script() -> None:
    policy = PAGE_HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    # An inline handler or style would be refused by the policy, and a link would leave the house.
    assert not re.search(r"\son\w+=|\sstyle=|https?://(?!www\.w3\.org/2000/svg)", PAGE)


def test_the_page_answers_without_a_key_and_its_figures_do_not(
    registry: Registry, tmp_path: Path
) -> None:
    _, key = new_key("operator", admin=True)
    KeyFile(str(tmp_path / "keys")).add(key)
    gateway = Gateway(registry, ServeConfig(keys=str(tmp_path / "keys")))
    with running(gateway) as url:
        assert httpx.get(f"{url}/dashboard").text == PAGE
        for path in ("admin/metrics", "admin/status"):
            assert httpx.get(f"{url}/{path}").status_code == 401
