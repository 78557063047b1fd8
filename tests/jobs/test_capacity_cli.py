"""`distillery capacity`: the table, the verdict, the exit code, and measuring a curve."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import loopback
import numpy as np
import pytest
from click.testing import CliRunner
from openai_server import openai_server

from cluster.errors import ConfigError, DataError, PrerequisiteError
from cluster.prices import ACCELERATOR_USD_PER_HOUR
from jobs.capacity_report import sparkline
from jobs.cli import cli
from serve.capacity.curve import read_curve

CURVE = {
    "startup_s": 20,
    "points": [
        {"concurrency": 1, "seconds_per_request": 1.0},
        {"concurrency": 8, "seconds_per_request": 1.4},
        {"concurrency": 32, "seconds_per_request": 3.2},
    ],
}
TRAFFIC = ["--rate", "20", "--hours", "0.2"]


@pytest.fixture
def curve(tmp_path: Path) -> str:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE))
    return str(path)


def capacity(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["capacity", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def as_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    output = capacity(*arguments, "--json", code=code)
    return dict(json.loads(output[output.index("{") :]))


def test_the_cheapest_setting_is_printed_to_paste_and_holds(curve: str) -> None:
    asked = [*TRAFFIC, "--curve", curve, "--serve.slo_p90_s", "2"]
    output = capacity(*asked, "--usd-per-hour", "3.29")
    for text in ("requests in 12.0 min", "starts in 20 s", "as configured it misses", "cheapest"):
        assert text in output
    pasted = output[output.index("[serve]\n") + len("[serve]\n") :].split("\n\n")[0]
    fields = [f"--serve.{line.replace(' = ', '=')}" for line in pasted.splitlines()]
    again = as_json(*TRAFFIC, "--curve", curve, "--no-search", *fields)
    assert again["held"]
    assert again["outcomes"]["as configured"]["p90_s"] <= 1.8


def test_dollars_are_replica_hours_times_the_price(curve: str) -> None:
    asked = [*TRAFFIC, "--curve", curve, "--serve.replicas", "3", "--no-search"]
    found = as_json(*asked, "--usd-per-hour", "2")["outcomes"]["as configured"]
    assert found["peak_replicas"] == 3
    requests = as_json(*asked)["traffic"]["requests"]
    expected = found["replica_hours"] * 2 / (requests - found["rejected"]) * 1000
    assert found["usd_per_1000"] == pytest.approx(expected)
    assert as_json(*asked)["outcomes"]["as configured"]["usd_per_1000"] is None


def test_an_accelerators_price_is_that_of_the_table(curve: str) -> None:
    asked = [*TRAFFIC, "--curve", curve, "--no-search", "--cluster.accelerator", "H100"]
    found = as_json(*asked)["outcomes"]["as configured"]
    assert found["usd_per_1000"] == pytest.approx(
        found["replica_hours"]
        * ACCELERATOR_USD_PER_HOUR["H100"]
        / (as_json(*asked)["traffic"]["requests"] - found["rejected"])
        * 1000
    )


def test_no_setting_holds_what_one_request_alone_takes_longer_than(curve: str) -> None:
    asked = ["--rate", "2", "--hours", "0.1", "--curve", curve, "--serve.slo_p90_s", "0.8"]
    output = capacity(*asked, "--serve.max_replicas", "4", code=2)
    assert "no setting holds 0.72 s" in output
    assert "a request alone takes 1 s already" in output


def test_a_configuration_file_gives_serve_and_the_accelerator(curve: str) -> None:
    run = str(Path(__file__).parents[2] / "jobs" / "runs" / "h100.toml")
    found = as_json(run, *TRAFFIC, "--curve", curve)
    assert found["outcomes"]["as configured"]["scaling"]["max_replicas"] == 2
    assert found["outcomes"]["as configured"]["usd_per_1000"] is not None


def test_a_plot_is_drawn(curve: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    capacity(*TRAFFIC, "--curve", curve, "--plot", str(plot), "--serve.replicas", "4")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_trace_is_read_and_multiplied(curve: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n" + "\n".join(str(i / 2) for i in range(600)))
    asked = ["--trace", str(trace), "--curve", curve, "--no-search"]
    assert as_json(*asked)["traffic"]["requests"] == 600
    assert as_json(*asked, "--scale", "3")["traffic"]["requests"] == 1800


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["--rate", "1"], ConfigError, "--curve: give the JSON"),
        (["--curve", "CURVE"], ConfigError, "give the traffic once"),
        (["--curve", "CURVE", "--rate", "1", "--trace", "x"], ConfigError, "traffic once"),
        (["--curve", "CURVE", "--trace", "gone.csv"], DataError, "no such file"),
        (["--curve", "CURVE", "--rate", "1", "--serve.slo", "1"], ConfigError, "slo_p90_s"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], error: type[Exception], told: str, curve: str
) -> None:
    given = [curve if word == "CURVE" else word for word in arguments]
    done = CliRunner().invoke(cli, ["capacity", *given])
    assert isinstance(done.exception, error)
    assert told in str(done.exception)


def test_a_curve_is_measured_against_a_server(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(0.05)
        assert body["stream"]
        assert body["ignore_eos"]
        usage = {"prompt_tokens": 100, "completion_tokens": 8, "total_tokens": 108}
        common = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        events = [
            common | {"choices": [{"index": 0, "delta": {"content": "word"}}]},
            common | {"choices": [], "usage": usage},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return 200, "".join([*lines, "data: [DONE]\n\n"]).encode()

    out = tmp_path / "curve.json"
    with openai_server(respond) as server:
        output = capacity(
            "--measure", server.url, "--model", "m", "--curve", str(out), "--startup-s", "75",
            "--concurrency", "1", "--concurrency", "4", "--seconds", "0.5", "--max-tokens", "8",
        )  # fmt: skip
    assert "written to" in output
    found = read_curve(out)
    assert (found.startup_s, found.prompt_tokens, found.completion_tokens) == (75, 100, 8)
    assert [point.concurrency for point in found.points] == [1, 4]
    for point in found.points:
        # The server takes 50 ms however many ask; what is above is the client's and the machine's.
        assert point.seconds_per_request is not None
        assert point.seconds_per_request >= 0.05
        assert point.p50_s is not None
        assert point.p90_s is not None
        assert 0.05 <= point.p50_s <= point.p90_s
        assert point.requests is not None
        assert point.requests >= point.concurrency


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    out = str(tmp_path / "curve.json")
    url = f"http://127.0.0.1:{loopback.free_port()}"
    done = CliRunner().invoke(cli, ["capacity", "--measure", url, "--model", "m", "--curve", out])
    assert isinstance(done.exception, PrerequisiteError)
    assert "nothing answers at" in str(done.exception)


def test_replicas_over_time_fit_on_a_line() -> None:
    assert sparkline(np.array([0, 1, 4, 8])) == " ▁▄█"
    assert len(sparkline(np.arange(100_000), columns=72)) == 72
