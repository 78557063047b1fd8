"""`distillery plan`: presets, verdict, exit code, and where its figures on the data come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.errors import ConfigError
from distill.records import COMPLETION
from distill.train.items import RATIONALE_TASK
from distill.train.plan.workload import Workload
from jobs.cli import cli
from jobs.config import load_run_config
from jobs.display import Display
from jobs.estimate import print_estimate
from jobs.plan import Asked, plan_config, preset_path, presets
from jobs.run import Run

ROOT = Path(__file__).parents[2]


def plan(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["plan", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_the_presets_are_those_that_are_promised() -> None:
    assert presets() == [
        "llama-3.1-70b-qlora",
        "llama-3.1-8b",
        "qwen2.5-7b-qlora",
        "qwen3-coder-30b-a3b",
        "smollm2",
    ]
    listed = plan("--presets")
    assert all(name in listed for name in presets())


@pytest.mark.parametrize("name", presets())
def test_a_preset_opens_with_its_command_and_fits_where_it_says_it_runs(name: str) -> None:
    first = preset_path(name).read_text().splitlines()[0]
    assert first.startswith(f"# distillery plan --preset {name} ")
    assert f"jobs/presets/{name}.toml" in first
    found = plan_config(load_run_config([preset_path(name)]), Asked(), measured=False)
    assert found.fits
    assert found.setting.hardware.kind == ("cpu" if name == "smollm2" else "gpu")


@pytest.mark.parametrize("name", presets())
def test_a_preset_dry_runs_without_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--prompts.train=20", "--prompts.validation=5", "--prompts.test=5"]
    config = load_run_config([preset_path(name)], overrides=[*few, f"--run.root={tmp_path}"])
    print_estimate(config)
    assert '"zero_optimization"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "memory_gib", "workers"),
    [("llama-3.1-70b-qlora", 48, 2), ("qwen2.5-7b-qlora", 24, 1), ("qwen3-coder-30b-a3b", 80, 2)],
)
def test_a_preset_stays_within_the_cards_it_is_for(
    name: str, memory_gib: float, workers: int
) -> None:
    found = plan_config(load_run_config([preset_path(name)]), Asked())
    assert found.setting.hardware.memory_gib <= memory_gib
    assert found.setting.train.workers == workers


def test_the_whole_table_is_printed_with_the_verdict() -> None:
    output = plan("--preset", "qwen2.5-7b-qlora", "--usd-per-hour", "0.5")
    for text in ("weights", "7.62B, NF4", "peak", "tokens/s", "at 0.50 an hour", "fits"):
        assert text in output


def test_what_cannot_fit_is_refused_and_its_suggestion_fits() -> None:
    flags = ["--preset", "llama-3.1-70b-qlora", "--hardware", "rtx4090", "--gpus", "1"]
    refused = CliRunner().invoke(cli, ["plan", *flags, "--student.tuning", "full"])
    assert isinstance(refused.exception, ConfigError)
    suggestion = re.search(r"^  (--.*): [\d.]+ of", str(refused.exception), re.MULTILINE)
    assert suggestion is not None
    told = suggestion[1].split()
    given = dict(zip(told[::2], told[1::2], strict=True))
    kept = {"--hardware": "rtx4090", "--gpus": "1", **given}
    again = [word for pair in kept.items() for word in pair]
    assert "fits" in plan("--preset", "llama-3.1-70b-qlora", *again)


def test_json_holds_bytes_and_the_exit_code_says_no() -> None:
    arguments = ["--preset", "llama-3.1-8b", "--json"]
    fitting = json.loads(plan(*arguments))
    assert fitting["fits"]
    assert fitting["memory"]["total"] == sum(p["bytes"] for p in fitting["memory"]["device"])
    assert fitting["parameters"] == 8_030_261_248
    refused = json.loads(plan(*arguments, "--memory-gib", "12", code=2))
    assert not refused["fits"]
    assert all(found["total"] for found in refused["suggestions"])


def test_figures_from_the_command_line_win() -> None:
    flags = ["--records", "500", "--mean-tokens", "300", "--max-tokens", "600"]
    found = json.loads(plan("--preset", "llama-3.1-8b", "--json", *flags))
    assert found["workload"]["records"] == 500
    assert found["workload"]["source"] == "as given"
    assert found["speed"]["steps"] == 3 * 32


def test_without_a_run_the_presets_are_named() -> None:
    assert "--presets lists them" in plan(code=2)
    done = CliRunner().invoke(cli, ["plan", "--preset", "gpt-4"])
    assert isinstance(done.exception, ConfigError)
    assert "no such preset; allowed: llama-3.1-70b-qlora," in str(done.exception)


def test_a_wrong_number_of_gpus_is_an_error() -> None:
    done = CliRunner().invoke(cli, ["plan", "--preset", "llama-3.1-8b", "--gpus", "3"])
    assert isinstance(done.exception, ConfigError)
    assert "train.batch_size 16 must be a multiple" in str(done.exception)


def curated(tmp_path: Path, *flags: str, **further: str) -> Workload:
    """What a plan reads of a run with twenty curated records."""
    import pyarrow as pa

    overrides = [f"--run.root={tmp_path}", *flags]
    config = load_run_config([preset_path("smollm2")], overrides=overrides)
    rows: list[dict[str, Any]] = [
        {
            "example_id": str(i),
            "messages": [{"role": "user", "content": "x" * 400}],
            "completion": "y" * 100 * (1 + i % 2),
            **further,
        }
        for i in range(20)
    ]
    columns = {name: [row.get(name) for row in rows] for name in COMPLETION.names}
    run = Run(config, Display())
    run.store.write_table("curated/train.parquet", pa.table(columns, schema=COMPLETION))
    return plan_config(config, Asked(), measured=False).setting.workload


def test_curated_records_of_the_run_are_read_where_there_are_some(tmp_path: Path) -> None:
    found = curated(tmp_path)
    assert found.source == "curated/train.parquet of this run, 4 characters a token"
    assert found.records == 20
    # 100 tokens of text and 8 of the template, then 25 or 50 and the end of turn.
    assert (found.max_tokens, found.mean_tokens) == (159, pytest.approx(146.5))


def test_rationales_count_where_the_method_learns_them(tmp_path: Path) -> None:
    reasoned = {"rationale": "z" * 400}
    assert curated(tmp_path, **reasoned).mean_tokens == pytest.approx(146.5)
    # 100 tokens of reasoning, 26 characters of tags and line ends.
    cot = curated(tmp_path, "--train.method=cot", **reasoned)
    assert cot.mean_tokens == pytest.approx(146.5 + 106, abs=1)
    # A further sequence of 100 tokens and its end, and what asks for it; "yyy" has no label.
    multitask = curated(tmp_path, "--train.method=multitask", **reasoned)
    asked = -(-len(f"\n\n{RATIONALE_TASK}") // 4)
    assert multitask.mean_tokens == pytest.approx(146.5 + 101 + asked, abs=1)
    assert multitask.completion_share > curated(tmp_path, **reasoned).completion_share


@pytest.mark.parametrize("method", ["cot", "multitask"])
def test_rationales_that_are_not_there_yet_are_assumed_and_it_is_said(method: str) -> None:
    def workload(*flags: str) -> Workload:
        longer = ["--student.max_length=1024", *flags]
        config = load_run_config([preset_path("smollm2")], overrides=longer)
        return plan_config(config, Asked(), measured=False).setting.workload

    plain, found = workload(), workload(f"--train.method={method}")
    assert "rationales assumed of 200 tokens" in found.source
    assert found.mean_tokens > plain.mean_tokens + 200


def test_a_records_tasks_together_may_be_longer_than_its_longest_sequence() -> None:
    config = load_run_config([preset_path("smollm2")], overrides=["--train.method=multitask"])
    found = plan_config(config, Asked(), measured=False).setting.workload
    assert found.max_tokens >= max(found.lengths) > config.student.max_length
