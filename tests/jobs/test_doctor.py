"""The doctor on this real machine, with configurations that lack something."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from jobs.doctor import doctor, main, reachable, render
from jobs.machine import Check, machine, torch_gpus, torch_is_cpu_build


def write_run(folder: Path, *, model: Path, extra: str = "") -> Path:
    config = folder / "run.toml"
    config.write_text(f'[task]\nfolder = "reconcile"\n[student]\nmodel = "{model}"\n{extra}')
    return config


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_busy_port_costs_something_and_a_model_with_template_is_found(tmp_path: Path) -> None:
    model = tmp_path / "student"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run = write_run(tmp_path, model=model, extra=f"[serve]\nport = {port}\n")
        found = by_name(doctor(run))
    assert found["chat template"].found == "tokenizer_config.json"
    assert found["student"].ok
    assert found["ray address"].ok
    assert found["accelerators"].ok, "nothing was asked for, so nothing is missing"
    busy = found["serve port"]
    assert not busy.ok
    assert not busy.required, "the demo needs no server"
    assert str(port) in busy.found
    assert "--serve.port" in busy.fix


def test_what_a_run_needs_and_has_not_is_named_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    run = write_run(
        tmp_path,
        model=tmp_path / "SmolLM2-135M-Instruct",
        extra='[cluster]\naddress = "auto"\naccelerator = "H100"\nmin_free_memory_gb = 1e6\n',
    )
    found = by_name(doctor(run))
    assert found["student"].fix == "run `make model`"
    assert "no Ray runs" in found["ray address"].found
    assert all(found[name].required for name in ("student", "ray address", "memory"))
    assert found["accelerators"].ok, "with another address the GPUs are on the cluster"


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_reachable_cluster_is_told_from_a_dead_one(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        assert reachable(address)
    assert not reachable(address)


def test_tools_are_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = by_name(machine())
    assert found["C++ compiler"].required
    assert not found["C++ compiler"].ok
    assert not found["prometheus"].ok
    assert not found["prometheus"].required
    assert found["torch"].ok


@pytest.mark.slow
def test_a_cpu_build_of_torch_sees_no_gpu() -> None:
    if not torch_is_cpu_build():
        pytest.skip("this torch may see GPUs")
    assert torch_gpus() == []


def test_a_broken_configuration_is_a_finding_that_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, model=tmp_path, extra="[train]\nepoch = 3\n")
    assert main([str(run)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "train.epoch: unknown field; did you mean 'epochs'?" in printed


def test_the_report_says_what_each_missing_thing_costs() -> None:
    console = Console(record=True, width=100)
    render(
        [
            Check(name="cores", found="[2]"),
            Check(name="prometheus", found="none", cost="no dashboards", fix="`make system-deps`"),
        ],
        console,
    )
    text = console.export_text()
    assert "ok  cores       [2]" in text
    assert "without it: no dashboards\n  fix: `make system-deps`" in text
    assert "The run can work here." in text
