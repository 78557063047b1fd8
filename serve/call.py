"""One request on its way through the gateway."""

from __future__ import annotations

import time

from serve.admit import Admission
from serve.metrics import Labels, labels_of
from serve.observe import Usage
from serve.quality.gate import Checked
from serve.requests import ApiRequest
from serve.routes import Routed, Target
from serve.routing.router import Difficulty

MODEL_HEADER = "x-distillery-model"


class Call:
    """One request on its way: what is counted and logged about it."""

    __slots__ = (
        "admission", "checked", "difficulty", "labels", "num_events", "request", "request_id",
        "route", "routed", "started",
    )  # fmt: skip

    def __init__(self, route: str, request_id: str):
        self.route = route
        self.request_id = request_id
        self.started = time.perf_counter()
        self.request: ApiRequest | None = None
        self.routed: Routed | None = None
        self.labels: Labels = labels_of(None, route)
        self.admission = Admission()
        self.num_events = 0
        self.checked: Checked | None = None
        self.difficulty: Difficulty | None = None

    def send_to(self, routed: Routed) -> None:
        """Decide, or decide anew, who answers."""
        self.routed = routed
        self.labels = labels_of(routed.target, self.route)

    @property
    def target(self) -> Target | None:
        """Which model answers, once that is decided."""
        return self.routed.target if self.routed else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came in."""
        return time.perf_counter() - self.started

    @property
    def headers(self) -> dict[str, str]:
        """Of the response; the request id is added by whoever listens."""
        model = {MODEL_HEADER: self.target.served_name} if self.target else {}
        checked = dict(self.checked.headers) if self.checked else {}
        moved = self.difficulty.headers if self.difficulty else {}
        return self.admission.headers | model | moved | checked


def overhead_s(call: Call, usage: Usage, *, latency_s: float, ttft_s: float | None) -> float | None:
    """Seconds outside the replica; `None` where a step after a refused answer took part of them."""
    if call.checked is not None and call.checked.quality not in (None, "passed"):
        return None
    if usage.replica_s is not None:
        return max(0.0, latency_s - usage.replica_s)
    # A stream's end is the client's matter as well as ours.
    if ttft_s is not None and usage.ttft_s is not None:
        return max(0.0, ttft_s - usage.ttft_s)
    return None
